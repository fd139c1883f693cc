#!/usr/bin/env bash
# Makes the virtual environments of the Makefile's targets, from a machine that has no more than Python
# 3.11 or 3.12. Says nothing, and changes nothing, where the environment is already right.
#
#     setup_env.sh demo      what `make demo` needs: torch, mmengine, mmseg, mmcv without its operators
#     setup_env.sh all       everything, with mmcv's operators compiled: needs gcc and g++
#     setup_env.sh upstream  OpenMMLab's own last releases, for `make test-upstream`: needs Python 3.11
#
# Reads from the environment:
#   VENV      the environment's folder (default .venv); one that exists is taken as it is and added to
#   PYTHON    the interpreter to make it with (default: the first of python3, python3.11, python3.12 that fits)
#   CUDA_OPS  auto: mmcv's CUDA operators where an NVIDIA GPU and a fitting nvcc are (default); 0: never;
#             1: always, for building where there is no GPU (set TORCH_CUDA_ARCH_LIST too)
#   MAX_JOBS  how many files compile at once (default: one a core, as far as memory allows)
# and what pip reads of index-url, find-links and cert, from its variables or its files.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# What the user's shell says of Python's paths would count as installed here.
unset PYTHONPATH PYTHONHOME

what=$1
venv=${VENV:-.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
python=$venv/bin/python stamp=$venv/setup-complete
cuda_ops=${CUDA_OPS:-auto} cuda_home=
versions='3.11 3.12' locks=(requirements/lock_demo.txt) sources='onedl-mmcv' strangers='mmcv mmcv_full mmengine mmdet mmsegmentation mmpretrain'
proof='import cv2, mmengine, mmseg.models'
case $what in
    demo) ;;
    all)
        # xtcocotools' wheel is built for numpy 1.
        locks+=(requirements/lock.txt) sources='onedl-mmcv xtcocotools'
        proof+=', mmcv.ops, mmdet.datasets, mmdet.models, mmpretrain.models, mmpose.models'
        ;;
    upstream)
        versions=3.11 locks=(requirements/lock_upstream.txt) sources=mmcv strangers='onedl_*' cuda_ops=0
        proof+=', mmcv.ops'
        ;;
esac

die() {
    printf 'set-up: %s\n' "$*" >&2
    exit 1
}

fits() {
    "$1" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] not in '$versions'.split())" 2>/dev/null
}

choose_python() {
    local candidate candidates=(python3 python3.11 python3.12)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        ! fits "$candidate" || { echo "$candidate"; return; }
    done
    die "no Python ${versions// / or } that runs among ${candidates[*]}: install one, or name it with PYTHON=/path/to/python (one of pyenv's: PYENV_VERSION=3.12.1 PYTHON=python3.12)"
}

# Everything that decides the environment. The stamp holds it, and what is in place, once all of it is.
fingerprint() {
    {
        cat "${locks[@]}" requirements/setup_env.sh pyproject.toml setup.py "$venv/pyvenv.cfg"
        echo "$PWD $venv"
        [ "$what" = demo ] || { echo "$cuda_ops"; compgen -G '/proc/driver/nvidia/gpus/*' || true; }
    } 2>/dev/null | sha256sum | cut -d ' ' -f 1
}

up_to_date() {
    [ -x "$python" ] && grep -qs "^$what $(fingerprint)$" "$stamp"
}

# An environment that is there must be one to use, and of the Python asked for.
check_folder() {
    local asked
    if [ -x "$python" ]; then
        fits "$python" || die "$venv holds $("$python" --version 2>&1), not Python ${versions// / or }: name another folder with VENV="
        [ -n "${PYTHON:-}" ] || return 0
        asked=$(choose_python)
        [ "$("$asked" --version)" = "$("$python" --version)" ] \
            || die "$venv holds $("$python" --version), PYTHON=$PYTHON is another: name another folder with VENV=, or remove this one"
    elif [ ! -e "$venv/pyvenv.cfg" ] && ls -A "$venv" 2>/dev/null | grep -qv '^setup.lock$'; then
        die "VENV=$venv is there and is no virtual environment: name another folder"
    fi
}

# What is better said before the downloads than after them.
check_machine() {
    local tool folder free base=$python
    [ -x "$base" ] || base=$(choose_python)
    if [ "$what" != demo ]; then
        "$base" -c 'import os, sysconfig as s; os.stat(os.path.join(s.get_paths()["include"], "Python.h"))' 2>/dev/null \
            || die "$base comes without Python.h: install its headers (Debian, Ubuntu: apt-get install python3-dev)"
        for tool in gcc g++; do
            command -v "$tool" >/dev/null || die "$tool is missing: install it (Debian, Ubuntu: apt-get install build-essential)"
        done
    fi
    folder=$venv
    until [ -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(df -Pk "$folder" | awk 'NR == 2 {print int($4 / 1000 / 1000)}')
    [ -d "$venv/bin" ] || [ "$free" -ge 9 ] \
        || die "$folder has $free GB free, and 9 GB are needed: free some, or name a folder elsewhere with VENV="
}

# uv does not read pip's settings.
pip_setting() {
    local variable=PIP_${1^^}
    variable=${variable//-/_}
    [ -z "${!variable:-}" ] || { echo "${!variable}"; return; }
    "$python" -m pip config get "global.$1" 2>/dev/null || true
}

take_pip_settings() {
    local index links cert
    index=$(pip_setting index-url) links=$(pip_setting find-links) cert=$(pip_setting cert)
    [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
    [ -z "$cert" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$cert}"
    # shellcheck disable=SC2086 # pip separates the folders by blanks, uv by commas
    [ -z "$links" ] || UV_FIND_LINKS=${UV_FIND_LINKS:-$(printf '%s,' $links)}
    export UV_FIND_LINKS=${UV_FIND_LINKS%,}
    export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}" UV_PYTHON_DOWNLOADS=never
}

pinned() {
    grep -h "^$1==" "${locks[@]}"
}

# Progress where somebody looks on.
install() {
    local quiet=--quiet
    [ ! -t 2 ] || quiet=
    "$venv/bin/uv" pip install --python "$python" --no-deps ${quiet:+"$quiet"} --build-constraints "${locks[0]}" "$@"
}

# The CUDA toolkit, nvcc and headers, of the major version of the torch that is installed.
find_toolkit() {
    local home nvcc major=$1
    nvcc=$(command -v nvcc || true)
    for home in "${CUDA_HOME:-}" "${nvcc%/bin/nvcc}" /usr/local/cuda "/usr/local/cuda-$major"*; do
        [ -e "$home/include/cuda_runtime.h" ] && "$home/bin/nvcc" --version | grep -q "release $major\." \
            && echo "$home" && return
    done
}

# Says what mmcv's operators are compiled for, and sets what its build reads.
choose_ops() {
    local major memory
    memory=$(awk '/^MemAvailable/ {print int($2 / 2000000) + 1}' /proc/meminfo) # a file takes up to 2 GB
    # -O1: half the time to compile, and what trains is torch's own code.
    export MAX_JOBS=${MAX_JOBS:-$(printf '%s\n' "$(nproc)" "$memory" | sort -n | head -n 1)}
    export MMCV_WITH_OPS=1 CFLAGS="${CFLAGS:-} -O1 -g0" CXXFLAGS="${CXXFLAGS:-} -O1 -g0" PATH="$venv/bin:$PATH"
    major=$(sed -n "s/^cuda\b.*= '\([0-9]*\)\..*/\1/p" "$packages/torch/version.py")
    if [ "$cuda_ops" = 1 ] || { [ "$cuda_ops" = auto ] && compgen -G '/proc/driver/nvidia/gpus/*' >/dev/null; }; then
        cuda_home=$(find_toolkit "$major" || true)
        [ -n "$cuda_home" ] || [ "$cuda_ops" = auto ] \
            || die "CUDA_OPS=1, but there is no nvcc of CUDA $major with its headers: install that toolkit, or name it with CUDA_HOME="
        [ -n "$cuda_home" ] || echo "set-up: no nvcc of torch's CUDA $major found (CUDA_HOME= names one): mmcv gets its CPU operators, and everything but detection runs on the GPU all the same"
    fi
    if [ -n "$cuda_home" ]; then
        # A toolkit may be nvcc and the runtime alone; the other headers came with torch's CUDA libraries.
        export FORCE_CUDA=1 CUDA_HOME="$cuda_home" CPATH="$packages/nvidia/cu$major/include${CPATH:+:$CPATH}"
        # Said aloud, for operators built for another GPU do not run on this one.
        export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | paste -sd ';')}
        proof+='; assert mmcv.ops.get_compiling_cuda_version() != "not available", "mmcv has no CUDA operators"'
    else
        # Where it sees a GPU, mmcv compiles for CUDA unasked.
        export FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=
    fi
    built_for="$(pinned torch) $(pinned numpy) ${cuda_home:-cpu} ${TORCH_CUDA_ARCH_LIST:-}"
}

# Compiles against the torch and numpy that are installed. uv keeps what it compiled apart by the setting.
compile() {
    local name options=()
    choose_ops
    if [ "$(cat "$venv/built-for" 2>/dev/null)" != "$built_for" ]; then
        rm -f "$venv/built-for"
        # mmcv without operators has the same name and version.
        # shellcheck disable=SC2086 # one word a package
        "$venv/bin/uv" pip uninstall --quiet --python "$python" $sources
    fi
    for name in $sources; do
        options+=("$(pinned "$name")" --no-build-isolation-package "$name" --config-settings-package "$name:built-for=$built_for")
    done
    echo "set-up: compiling mmcv's operators: about 9 minutes on two cores, none where they were compiled before ..."
    install "${options[@]}" --no-binary xtcocotools
    printf '%s' "$built_for" >"$venv/built-for"
}

freeze() {
    "$venv/bin/uv" pip freeze --quiet --python "$python" --exclude clustr-mm
}

# As a user would, with its requirements: all of them must be met already.
install_beside() {
    local before
    before=$(freeze)
    "$python" -m pip install -qq --editable .
    diff <(echo "$before") <(freeze) || die 'installing clustr-mm changed the stack'
}

case $cuda_ops in auto | 0 | 1) ;; *) die "CUDA_OPS=$cuda_ops: it is auto, 0 or 1" ;; esac
check_folder
up_to_date && exit 0
check_machine

mkdir -p "$venv"
exec 9>>"$venv/setup.lock"
# Two at once (make demo here, make test there): the second waits, and finds everything done.
if ! flock --nonblock 9; then
    echo "set-up: another one is at work in $venv; waiting for it ..."
    flock 9
    up_to_date && exit 0
fi
trap 'echo "set-up: failed; the same command goes on from here" >&2' ERR

rm -f "$stamp"
# Also mends an environment whose making was cut off, for pip is the last thing it puts in, or whose Python is gone.
if ! "$python" -m pip --version >/dev/null 2>&1; then
    base=$python
    [ -x "$python" ] || { base=$(choose_python); rm -f "$venv"/bin/python*; }
    "$base" -m venv "$venv"
fi
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
for name in $strangers; do
    ! compgen -G "$packages/$name-*.dist-info" >/dev/null \
        || die "$venv holds ${name//_/-}: OpenMMLab's own packages and the onedl forks overwrite each other's files; name another folder with VENV="
done
# An installation that was cut off leaves packages which look installed and are not: RECORD is written last.
find "$packages" -maxdepth 1 \( -name '~*' -o -name '*.dist-info' ! -exec test -e '{}/RECORD' \; \) -exec rm -rf {} +

echo "set-up: installing torch, the OpenMMLab packages and what they need into $venv (5 GB the first time) ..."
[ -x "$venv/bin/uv" ] || "$python" -m pip install -qq --disable-pip-version-check "$(pinned uv)"
take_pip_settings
if [ "$what" = demo ]; then
    install --requirement "${locks[0]}"
else
    # shellcheck disable=SC2086 # one word a package
    install --requirement <(grep -hv $(printf -- '-e ^%s== ' $sources) "${locks[@]}")
    compile
fi
if [ "$what" = upstream ]; then install_beside; else install --editable .; fi
"$python" -W ignore -c "$proof" >/dev/null
# What has everything has what the demo needs.
if [ "$what" = all ]; then fingerprints="all $(fingerprint)"; locks=(requirements/lock_demo.txt) what=demo; fi
printf '%s\n' "${fingerprints:-}" "$what $(fingerprint)" >"$stamp.new"
mv "$stamp.new" "$stamp"
echo "set-up: done; $venv is ready"
