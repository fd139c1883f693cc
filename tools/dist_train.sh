#!/usr/bin/env bash
# Trains in several processes, one a GPU; without GPUs, on the CPU over gloo:
#
#   tools/dist_train.sh CONFIG GPUS [options of train.py]
#
# Several machines run it at once, with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR (the first machine's
# address) and PORT set. MAX_RESTARTS=3 starts dead processes again, from the newest checkpoint.
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS [options of train.py]" >&2; exit 1; }
meet=(--rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0 --local-addr=127.0.0.1)  # at a free port
[ -z "$PORT$NNODES" ] || meet=(--nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}"
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}")
# Restarted processes would look for each other where the dead ones left their addresses.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "${PYTHON:-python}" -m torch.distributed.run "${meet[@]}" --nproc-per-node="$2" \
    --max-restarts="${MAX_RESTARTS:-0}" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
