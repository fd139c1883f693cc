# `make demo` and `make test` do everything from a bare machine; `make help` lists the rest.
# Any of them takes VENV=folder (an environment elsewhere than .venv) and PYTHON=python3.12 (what to make it with).

VENV ?= .venv
PYTHON ?=
CUDA_OPS ?= auto
# Which tests: make test MARKS=slow, make test MARKS=long, make test MARKS=gpu, make test MARKS= (all).
MARKS ?= not slow and not long and not gpu
export VENV PYTHON CUDA_OPS

python := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))/bin/python
UPSTREAM_VENV ?= .venv-upstream
upstream_python := $(if $(filter /%,$(UPSTREAM_VENV)),$(UPSTREAM_VENV),$(CURDIR)/$(UPSTREAM_VENV))/bin/python
sources := clustr_mm configs tools tests setup.py

.PHONY: help demo test test-upstream gpu-check lint docs format hooks setup clean

help:
	@echo "make demo    train ClusTR on a small made-up data set: its mIoU, a picture, a checkpoint"
	@echo "make test    run the tests (MARKS=slow, MARKS=long, MARKS=gpu or MARKS= for others)"
	@echo "make test-upstream  train and test every task beside OpenMMLab's own releases, on torch 2.1"
	@echo "make gpu-check  on a GPU: the kernels' results, then speed and memory, in under six minutes"
	@echo "make lint    run the linters, the type checker and the check for repeated code"
	@echo "make format  let ruff format and mend what it can"
	@echo "make hooks   run the linters at every git commit"
	@echo "make docs    build the documentation into site/; a dead link among its pages is an error"
	@echo "make setup   only the environment, which all the others make where it is missing"
	@echo "make clean   remove .venv and what building and checking left (not your data or runs)"
	@echo
	@echo "VENV=folder uses or makes an environment elsewhere; PYTHON=python3.12 says what to make it with;"
	@echo "CUDA_OPS=0 leaves mmcv's CUDA ops out where there is a GPU."

setup:
	@bash requirements/setup_env.sh all

demo:
	@bash requirements/setup_env.sh demo
	@"$(python)" tools/demo_train.py

# The tests are small: two processes of one thread each are faster than one process of two threads.
# Each begins with a half in order, so that few fixtures are made twice; who is done takes from the other.
WORKERS ?= 2
test: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)
test: setup
	@"$(python)" -m pytest -n $(WORKERS) --dist worksteal -m "$(MARKS)" tests

# An environment of its own, .venv-upstream or UPSTREAM_VENV=folder, of Python 3.11.
test-upstream: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)
test-upstream:
	@VENV="$(UPSTREAM_VENV)" bash requirements/setup_env.sh upstream
	@"$(upstream_python)" tests/prove_stack.py

# Without set-up: a borrowed GPU's Python with torch, triton, pytest and timm will do.
gpu-check: export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
gpu-check: gpu_python := "$(or $(PYTHON),$(wildcard $(python)),python3)"
gpu-check: speed := tools/analysis/benchmark.py speed --device cuda --amp fp16 --batch 64 --shape 224
gpu-check:
	@status=0; \
	$(gpu_python) -m pytest -m gpu tests/ops tests/models || status=1; \
	$(gpu_python) $(speed) --models clustr_s swin_t pvtv2_b2 || status=1; \
	$(gpu_python) $(speed) --models clustr_s swin_t pvtv2_b2 --train || status=1; \
	$(gpu_python) $(speed) --models clustr_s pvtv2_b2 --compile || status=1; \
	$(gpu_python) tools/analysis/benchmark.py clustering --device cuda --backends triton tiled || status=1; \
	exit $$status

lint: setup
	"$(python)" -m ruff check $(sources)
	"$(python)" -m ruff format --check $(sources)
	"$(python)" -m mypy
	"$(python)" -m pylint clustr_mm configs tools

format: setup
	"$(python)" -m ruff check --fix $(sources)
	"$(python)" -m ruff format $(sources)

docs: setup
	@"$(python)" -m mkdocs build --strict

hooks: setup
	"$(python)" -m pre_commit install

clean:
	rm -rf .venv .venv-upstream build dist site ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(sources) -name __pycache__ -prune -exec rm -rf {} +
