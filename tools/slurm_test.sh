#!/usr/bin/env bash
# Tests on a Slurm cluster, one task a GPU:
#
#   GPUS=8 GPUS_PER_NODE=8 tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
#
# CPUS_PER_TASK, SRUN_ARGS and PORT are as for slurm_train.sh.
# shellcheck source=tools/slurm.sh
source "$(dirname "${BASH_SOURCE[0]}")/slurm.sh"
run_on_slurm test.py 2 "CONFIG CHECKPOINT" "$@"
