#!/usr/bin/env bash
# Makes the virtual environment of `make test-upstream`, OpenMMLab's own last releases instead of the
# forks, and installs this package beside them, which must change none of them. Needs Python 3.11 (torch
# 2.1 knows no later one), gcc and g++. Says nothing where the environment is already right.
#
# Reads from the environment:
#   UPSTREAM_VENV  the environment's folder (default .venv-upstream)
#   PYTHON         the interpreter to make it with (default: the first of python3.11, python3 that is 3.11)
#   MAX_JOBS       how many files of mmcv compile at once (default: one a core, as far as memory allows)
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"
lock=requirements/lock_upstream.txt
. requirements/common.sh

is_311() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

choose_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_311 "$PYTHON" || die "PYTHON=$PYTHON is no Python 3.11, the last that torch 2.1 runs on: name one"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3; do
        if is_311 "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "neither python3.11 nor python3 is a Python 3.11, the last that torch 2.1 runs on: install it, or name it with PYTHON=/path/to/python"
}

has_ops() {
    "$python" -c 'from mmcv.ops import nms' >>"$log" 2>&1
}

# Without isolation, and not from pip's cache if that has a wheel without ops: lock.txt's script says why.
install_mmcv() {
    has_ops && return
    export MMCV_WITH_OPS=1 FORCE_CUDA=0 CUDA_VISIBLE_DEVICES='' MAX_JOBS=${MAX_JOBS:-$(jobs_that_fit)}
    export CFLAGS="${CFLAGS:-} -O1 -g0" CXXFLAGS="${CXXFLAGS:-} -O1 -g0" PATH="$venv/bin:$PATH"
    step "compiling mmcv's ops (about 10 minutes on two cores; a wheel that pip finds saves them)" \
        pip_install --force-reinstall "$(pinned mmcv)"
    has_ops || step "compiling mmcv's ops once more, from the source alone" \
        pip_install --force-reinstall --no-cache-dir --no-binary mmcv "$(pinned mmcv)"
    step "checking mmcv's ops" has_ops
}

stack() {
    "$python" -m pip freeze --all --exclude clustr-mm
}

# As a user would, with its requirements: all of them must be met already.
install_package() {
    local before after
    before=$(stack)
    step "installing clustr-mm" "$python" -m pip install --editable .
    after=$(stack)
    [ "$before" = "$after" ] || die "installing clustr-mm changed the stack: $(diff <(echo "$before") <(echo "$after") | grep '^[<>]' | tr '\n' ' ')"
}

fingerprint() {
    {
        cat "$lock" requirements/setup_upstream.sh requirements/common.sh pyproject.toml setup.py
        echo "$repo $venv"
    } | sha256sum | cut -d ' ' -f 1
}

venv=${UPSTREAM_VENV:-.venv-upstream}
case $venv in /*) ;; *) venv=$repo/$venv ;; esac
python=$venv/bin/python
stamp=$venv/setup-complete
log=$venv/setup.log

if [ -x "$python" ]; then
    is_311 "$python" || die "$venv holds another Python than 3.11: name another folder with UPSTREAM_VENV="
    [ "$(cat "$stamp" 2>/dev/null)" != "$(fingerprint)" ] || exit 0
fi
mkdir -p "$venv" || die "cannot make the folder UPSTREAM_VENV=$venv"
rm -f "$stamp"
if ! "$python" -m pip --version >/dev/null 2>&1; then
    base=$(choose_python)
    step "making $venv" "$base" -m venv "$venv"
fi
if compgen -G "$venv/lib/python3.11/site-packages/onedl_*.dist-info" >/dev/null; then
    die "$venv holds the onedl forks, whose files upstream's packages would overwrite: name another folder with UPSTREAM_VENV="
fi
# shellcheck disable=SC2046 # one word a package
step "installing the build tools" pip_install $(for name in ninja packaging setuptools wheel numpy; do pinned $name; done)
step "installing torch 2.1, the OpenMMLab packages and what they need (the first time 4 GB)" \
    pip_install --requirement <(grep -v '^mmcv==' "$lock")
install_mmcv
install_package
fingerprint >"$stamp"
echo "set-up: done; $venv is ready"
