#!/usr/bin/env bash
# Makes the virtual environment of the Makefile's targets, from a machine that has no more than Python
# 3.11 or 3.12, gcc and g++. Says nothing, and changes nothing, where the environment is already right.
#
# Reads from the environment:
#   VENV      the environment's folder (default .venv); one that exists is taken as it is and added to
#   PYTHON    the interpreter to make it with (default: the first of python3, python3.11, python3.12 that fits)
#   CUDA_OPS  auto: mmcv's CUDA ops where an NVIDIA GPU and a fitting nvcc are (default); 0: never;
#             1: always, for building where there is no GPU (set TORCH_CUDA_ARCH_LIST too)
#   MAX_JOBS  how many files compile at once (default: one a core, as far as memory allows)
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"
lock=requirements/lock.txt
cuda_ops=${CUDA_OPS:-auto}
# Measured: 8 GB at the worst moment, 3 more where pip keeps a copy of what it fetches on the same disk.
gigabytes_needed=9 gigabytes_with_copies=12
. requirements/common.sh

# --- what is here ------------------------------------------------------------------------------------

fits() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null
}

version_of() {
    "$1" --version 2>/dev/null || echo "no Python that runs"
}

choose_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || die "PYTHON=$PYTHON: there is no such command"
        fits "$PYTHON" || die "PYTHON=$PYTHON is $(version_of "$PYTHON"): name a Python 3.11 or 3.12"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.11 python3.12; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.11 or 3.12 among python3, python3.11, python3.12: install one, or name it with PYTHON=/path/to/python"
}

has_gpu() {
    compgen -G '/proc/driver/nvidia/gpus/*' >/dev/null || nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

# The CUDA major version of the torch in the environment ("13"; nothing where torch is not there or has no CUDA),
# read without importing torch, which would take seconds.
torch_cuda_major() {
    "$python" - <<'PY' 2>/dev/null
import importlib.util, pathlib, re
folder = pathlib.Path(importlib.util.find_spec("torch").origin).parent
print(*re.findall(r"^cuda\b.*= '(\d+)\.", (folder / "version.py").read_text(), re.M))
PY
}

# The compute capabilities of the GPUs that torch sees ("9.0", "8.0;8.6").
gpu_kinds() {
    "$python" - <<'PY'
import torch
kinds = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
print(";".join(f"{major}.{minor}" for major, minor in sorted(kinds)))
PY
}

# A CUDA toolkit of the major version $1 that can compile (nvcc and the headers).
find_toolkit() {
    local nvcc home
    nvcc=$(command -v nvcc || true)
    for home in "${CUDA_HOME:-}" "${nvcc%/bin/nvcc}" /usr/local/cuda "/usr/local/cuda-$1" /usr/local/cuda-"$1".*; do
        if [ -n "$home" ] && [ -e "$home/include/cuda_runtime.h" ] \
            && "$home/bin/nvcc" --version 2>/dev/null | grep -q "release $1\."; then
            echo "$home"
            return
        fi
    done
}

# Sets ops to "cpu" or "cuda MAJOR TOOLKIT", and ops_note to a line that says why no CUDA ops where one
# would expect them. Before torch is installed this is a guess that the second call corrects.
choose_ops() {
    local major toolkit
    ops=cpu ops_note=
    case $cuda_ops in
        0) return ;;
        1) ;;
        auto) has_gpu || return 0 ;;
    esac
    major=$(torch_cuda_major || true)
    toolkit=$([ -z "$major" ] || find_toolkit "$major")
    if [ -n "$toolkit" ]; then
        ops="cuda $major $toolkit"
    elif [ "$cuda_ops" = 1 ] && [ -n "$major" ]; then
        die "CUDA_OPS=1, but there is no nvcc of CUDA $major with its headers: install that toolkit, or name it with CUDA_HOME="
    else
        ops_note="no nvcc of torch's CUDA ${major:-version} found (CUDA_HOME= names one): mmcv gets its CPU ops, and everything but detection runs on the GPU all the same"
    fi
}

# Everything that decides the environment. The stamp holds it once all of it is in place.
fingerprint() {
    {
        cat "$lock" requirements/setup_env.sh requirements/common.sh pyproject.toml setup.py "$venv/pyvenv.cfg"
        echo "$repo $venv $ops"
    } | sha256sum | cut -d ' ' -f 1
}

up_to_date() {
    [ -x "$python" ] && [ -f "$stamp" ] || return 1
    choose_ops
    [ "$(cat "$stamp")" = "$(fingerprint)" ]
}

# --- the steps ---------------------------------------------------------------------------------------

# An environment that is there must be one of ours to use: of a fitting Python, and of the one asked for.
check_folder() {
    local asked
    if [ -x "$python" ]; then
        fits "$python" || die "$venv holds $(version_of "$python"), not 3.11 or 3.12: name another folder with VENV="
        [ -n "${PYTHON:-}" ] || return 0
        asked=$(choose_python)
        [ "$(version_of "$asked")" = "$(version_of "$python")" ] \
            || die "$venv holds $(version_of "$python"), PYTHON=$PYTHON is $(version_of "$asked"): name another folder with VENV=, or remove this one"
    elif [ -L "$python" ]; then
        die "the Python that $venv was made with is gone: remove that folder and run this again"
    elif [ -e "$venv" ] && [ ! -e "$log" ] && [ -n "$(ls -A "$venv" 2>/dev/null || echo file)" ]; then
        die "VENV=$venv is there and is no virtual environment: name another folder"
    fi
}

# What compiling and the downloads need, better said now than after them.
check_machine() {
    local tool folder free
    if [ -x "$python" ]; then base=$python; else base=$(choose_python); fi
    "$base" -c 'import venv, ensurepip' 2>/dev/null \
        || die "$base cannot make virtual environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)"
    "$base" -c 'import os, sysconfig as s; os.stat(os.path.join(s.get_paths()["include"], "Python.h"))' 2>/dev/null \
        || die "$base comes without Python.h: install its headers (Debian, Ubuntu: apt-get install python3-dev)"
    for tool in gcc g++; do
        command -v "$tool" >/dev/null || die "$tool is missing: install it (Debian, Ubuntu: apt-get install build-essential)"
    done
    folder=$venv
    until [ -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(df -Pk "$folder" | awk 'NR == 2 {print int($4 / 1000 / 1000)}')
    [ "$free" -lt "$gigabytes_with_copies" ] && [ -z "$(torch_cuda_major || true)" ] || return 0
    [ "$free" -ge "$gigabytes_needed" ] \
        || die "$folder has $free GB free, and $gigabytes_needed GB are needed: free some, or name a folder elsewhere with VENV="
    echo "set-up: $folder has $free GB free: pip keeps no copy of what it fetches"
    export PIP_NO_CACHE_DIR=1
}

# A pip that was cut off leaves packages which look installed and are not: what has no RECORD, which pip
# writes last, is taken away, so that it is installed again.
remove_half_installed() {
    find "$packages" -maxdepth 1 \( -name '~*' -o -name '*.dist-info' ! -exec test -e '{}/RECORD' \; \) \
        -exec rm -rf {} +
}

refuse_upstream() {
    local name
    for name in mmcv mmcv_full mmengine mmdet mmsegmentation mmpretrain; do
        if compgen -G "$packages/$name-*.dist-info" >/dev/null; then
            die "$venv holds ${name//_/-}, whose files the onedl fork would overwrite: name another folder with VENV="
        fi
    done
}

# compiled NAME PROOF BUILT_AGAINST WHAT [PIP OPTION...]: installs the source distribution NAME, and proves
# that what it compiled works. pip's cache cannot be trusted with such wheels: it knows a wheel by its
# source alone, so it hands out one built against another torch or numpy, or mmcv built in isolation,
# which has no ops at all. So each gets a cache of its own for what it was built against.
compiled() {
    local name=$1 proof=$2 against=$3 what=$4 built=$venv/built-$1 cache
    shift 4
    against="$(pinned "$name") $against"
    [ "$(cat "$built" 2>/dev/null)" = "$against" ] && "$python" -c "$proof" >>"$log" 2>&1 && return
    rm -f "$built"
    cache=$("$python" -m pip cache dir 2>/dev/null || true) # nothing where pip is told to keep none
    [ -z "$cache" ] || cache=$cache/clustr-mm/$name-$(printf '%s' "$against" | sha256sum | cut -c 1-12)
    step "$what" pip_install --verbose --force-reinstall ${cache:+--cache-dir "$cache"} "$@" "$(pinned "$name")"
    if ! "$python" -c "$proof" >>"$log" 2>&1; then
        step "$what once more, from the source alone, for the wheel that pip found does not work here" \
            pip_install --verbose --force-reinstall --no-cache-dir --no-binary "$name" "$(pinned "$name")"
        step "checking $name" "$python" -c "$proof"
    fi
    printf '%s' "$against" >"$built"
}

install() {
    local packages name mmcv_proof mmcv_time major toolkit tools=()
    # pip unpacks gigabytes, more than many a /tmp holds.
    export TMPDIR=$venv/tmp
    rm -rf "$TMPDIR"
    mkdir "$TMPDIR"

    # Also mends an environment whose making was cut off: pip is the last thing it puts in.
    "$python" -m pip --version >/dev/null 2>&1 || step "making $venv with $(version_of "$base")" "$base" -m venv "$venv"
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    refuse_upstream
    remove_half_installed
    export PATH="$venv/bin:$PATH" # ninja

    for name in click cython ninja numpy packaging setuptools wheel; do
        tools+=("$(pinned "$name")")
    done
    step "installing the build tools" pip_install "${tools[@]}"
    step "installing torch, the OpenMMLab packages and what they need (the first time 5 GB, about 3 minutes)" \
        pip_install --requirement <(grep -Ev '^(onedl-mmcv|xtcocotools)==' "$lock")

    choose_ops
    [ -z "$ops_note" ] || printf 'set-up: %s\n' "$ops_note"
    # -O1: half the time to compile, and what trains is torch's own code.
    export MAX_JOBS=${MAX_JOBS:-$(jobs_that_fit)} CFLAGS="${CFLAGS:-} -O1 -g0" CXXFLAGS="${CXXFLAGS:-} -O1 -g0"
    # Its wheel is built for numpy 1.
    compiled xtcocotools 'import xtcocotools.mask' "$(pinned numpy)" "compiling xtcocotools (half a minute)" \
        --no-binary xtcocotools

    mmcv_proof='from mmcv.ops import get_compiling_cuda_version as cuda, nms'
    mmcv_time="about 9 minutes on two cores"
    if [ "$ops" != cpu ]; then
        read -r _ major toolkit <<<"$ops"
        # A toolkit may be nvcc and the runtime alone; the other headers came with torch's CUDA libraries.
        export FORCE_CUDA=1 CUDA_HOME="$toolkit" CPATH="$packages/nvidia/cu$major/include${CPATH:+:$CPATH}"
        # Said aloud, for a wheel built for another GPU does not run on this one.
        export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(gpu_kinds)}
        mmcv_proof+='; assert cuda() != "not available", "mmcv was compiled without CUDA"'
        mmcv_time="with CUDA, which CUDA_OPS=0 leaves out: about 10 minutes on 16 cores"
    else
        # Where it sees a GPU, mmcv compiles for CUDA unasked.
        export FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=
    fi
    compiled onedl-mmcv "$mmcv_proof" "$(pinned torch) $ops ${TORCH_CUDA_ARCH_LIST:-}" "compiling mmcv's ops ($mmcv_time)"

    step "installing clustr-mm" pip_install --editable .
    step "importing every library" "$python" -c \
        'import cv2, mmengine, mmcv.ops, mmdet.datasets, mmdet.models, mmseg.models, mmpretrain.models, mmpose.models'
}

venv=${VENV:-.venv}
case $venv in /*) ;; *) venv=$repo/$venv ;; esac
python=$venv/bin/python
stamp=$venv/setup-complete
log=$venv/setup.log

case $cuda_ops in auto | 0 | 1) ;; *) die "CUDA_OPS=$cuda_ops: it is auto, 0 or 1" ;; esac
check_folder
up_to_date && exit 0
check_machine

mkdir -p "$venv" || die "cannot make the folder VENV=$venv"
exec 9>>"$log"
# Two at once (make demo here, make test there): the second waits, and finds everything done.
if command -v flock >/dev/null && ! flock --nonblock 9; then
    echo "set-up: another one is at work in $venv; waiting for it ..."
    flock 9
    up_to_date && exit 0
fi

rm -f "$stamp"
install
choose_ops
fingerprint >"$stamp.new"
mv "$stamp.new" "$stamp"
rm -rf "$TMPDIR"
echo "set-up: done; $venv is ready"
