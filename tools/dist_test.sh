#!/usr/bin/env bash
# Tests in several processes, one a GPU; on a machine without GPUs, GPUS processes on the CPU:
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
#
# Several machines run it at once, with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR (the first machine's
# address) and PORT set.
exec "${PYTHON:-python}" -m clustr_mm.engine.torchrun "$(dirname "${BASH_SOURCE[0]}")/test.py" "$@"
