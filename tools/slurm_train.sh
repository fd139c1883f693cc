#!/usr/bin/env bash
# Trains on a Slurm cluster, one task a GPU:
#
#   GPUS=16 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of train.py]
#
# CPUS_PER_TASK cores go to each task; SRUN_ARGS holds more options of srun (on a partition without GPUs:
# SRUN_ARGS=--gres=none); PORT is where the tasks meet on the first node.
# shellcheck source=tools/slurm.sh
source "$(dirname "${BASH_SOURCE[0]}")/slurm.sh"
run_on_slurm train.py 1 CONFIG "$@"
