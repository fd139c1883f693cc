#!/usr/bin/env bash
# What the Dockerfile runs, on Debian or Ubuntu, as root: the compilers, and the environment of
# `make setup` with mmcv's CUDA operators. CUDA_OPS=0 leaves those out; requirements/setup_env.sh has
# the other variables.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
    build-essential make python3-dev python3-venv
rm -rf /var/lib/apt/lists/*

# An image has no use for what was fetched: the environment holds hard links to it.
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
PYTHON=${PYTHON:-/usr/bin/python3} CUDA_OPS=${CUDA_OPS:-1} UV_CACHE_DIR=${UV_CACHE_DIR:-$cache} \
    PIP_NO_CACHE_DIR=1 bash requirements/setup_env.sh all
