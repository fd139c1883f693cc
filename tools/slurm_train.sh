#!/usr/bin/env bash
# Trains on a Slurm cluster, one task a GPU:
#
#   GPUS=16 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [options of train.py]
#
# CPUS_PER_TASK cores go to each task; SRUN_ARGS holds more options of srun.
[ $# -ge 3 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG [WORK_DIR] [options]" >&2; exit 1; }
options=("${@:4}")
[ $# -eq 3 ] || [[ $4 == -* ]] || options=(--work-dir "${options[@]}")
# shellcheck disable=SC2086 # SRUN_ARGS is several words
exec srun -p "$1" --job-name="$2" --gres="gpu:${GPUS_PER_NODE:-8}" --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$3" --launcher slurm "${options[@]}"
