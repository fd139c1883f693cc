# What setup_env.sh and setup_upstream.sh share; they set python (the environment's interpreter), log
# (a file for the commands' own words) and lock (the pinned packages).

# What the user's shell says of Python's paths would count as installed here.
unset PYTHONPATH PYTHONHOME
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

die() {
    printf 'set-up: %s\n' "$*" >&2
    exit 1
}

# step WHAT COMMAND...: says what goes on; the command's own words go to the log.
step() {
    local what=$1 start=$SECONDS
    shift
    printf 'set-up: %s ...\n' "$what"
    printf '\n### %s: %s\n' "$what" "$*" >>"$log"
    if ! "$@" >>"$log" 2>&1; then
        printf '\nThe last lines of %s:\n' "$log" >&2
        tail -n 20 "$log" >&2
        die "failed while $what; the whole output is in $log; the same command goes on from here"
    fi
    # Say how long only where it was worth waiting for.
    if [ $((SECONDS - start)) -ge 20 ]; then
        printf 'set-up:   took %d min %02d s\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60))
    fi
}

pip_install() {
    "$python" -m pip install --no-deps --no-build-isolation "$@"
}

# The line of a package in the lock.
pinned() {
    grep "^$1==" "$lock"
}

# How many files of mmcv compile at once.
jobs_that_fit() {
    local cores memory
    cores=$(nproc)
    # A file of mmcv takes up to 2 GB to compile.
    memory=$(awk '/^MemAvailable/ {print int($2 / 2000000)}' /proc/meminfo)
    [ "$memory" -lt "$cores" ] && cores=$memory
    [ "$cores" -ge 1 ] && echo "$cores" || echo 1
}

