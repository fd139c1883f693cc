#!/usr/bin/env bash
# Trains in several processes, one a GPU; on a machine without GPUs, GPUS processes on the CPU:
#
#   tools/dist_train.sh CONFIG GPUS [options of train.py]
#
# Several machines run it at once, with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR (the first machine's
# address) and PORT set. MAX_RESTARTS=3 starts dead processes again, from the newest checkpoint.
exec "${PYTHON:-python}" -m clustr_mm.engine.torchrun "$(dirname "${BASH_SOURCE[0]}")/train.py" "$@"
