# shellcheck shell=bash
# What slurm_train.sh and slurm_test.sh share.

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

need_number() {
    [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 is a whole number of 1 or more, not '$2'"
}

# run_on_slurm TOOL COUNT NAMES ARGUMENT...: runs a tool by srun. The arguments begin with a partition,
# a name, and COUNT files, called NAMES.
run_on_slurm() {
    local tool=$1 count=$2 names=$3 partition=${4:-} job_name=${5:-} file extra=()
    shift 3
    [ $# -ge $((count + 2)) ] || die "give PARTITION JOB_NAME $names [options of $tool]; got ${*:-nothing}"
    shift 2
    for file in "${@:1:count}"; do
        [ -e "$file" ] || die "$file does not exist; check the path"
    done
    local gpus=${GPUS:-8} cpus=${CPUS_PER_TASK:-5}
    need_number GPUS "$gpus"
    local gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    need_number GPUS_PER_NODE "$gpus_per_node"
    need_number CPUS_PER_TASK "$cpus"
    command -v srun >/dev/null || die "there is no srun here: start this where Slurm is"
    # Every task must know the same port, and two jobs on one node must not.
    export MASTER_PORT=${PORT:-$((20000 + RANDOM % 10000))}
    read -ra extra <<<"${SRUN_ARGS:-}"
    exec srun --partition="$partition" --job-name="$job_name" --gres="gpu:$gpus_per_node" \
        --ntasks="$gpus" --ntasks-per-node="$gpus_per_node" --cpus-per-task="$cpus" \
        --kill-on-bad-exit=1 "${extra[@]}" \
        "${PYTHON:-python}" -u "$(dirname "${BASH_SOURCE[0]}")/$tool" "$@" --launcher=slurm
}
