#!/usr/bin/env bash
# Tests in several processes, one a GPU; without GPUs, on the CPU over gloo:
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
#
# Several machines run it at once, with NNODES, NODE_RANK, MASTER_ADDR and PORT as for dist_train.sh.
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS [options of test.py]" >&2; exit 1; }
meet=(--rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0 --local-addr=127.0.0.1)  # at a free port
[ -z "$PORT$NNODES" ] || meet=(--nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}"
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}")
exec "${PYTHON:-python}" -m torch.distributed.run "${meet[@]}" --nproc-per-node="$3" \
    "$(dirname "$0")/test.py" "$1" "$2" --launcher pytorch "${@:4}"
