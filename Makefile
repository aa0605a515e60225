# Each target sets up what it needs, so `make test` works in a fresh clone.

PYTHON ?= python3
GRID ?=
SHORT ?=
BIN := .venv/bin

# On a CPU each core trains runs of its own, which is faster than many cores on one run; accelerators ignore this.
export JAX_NUM_CPU_DEVICES ?= $(shell getconf _NPROCESSORS_ONLN)

# CUDA 13 needs a driver of version 580 or later, CUDA 12 one of 525; the PCI numbers are TPUs.
define DETECT
driver=$$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d . -f 1); \
if [ "$$driver" -ge 580 ] 2>/dev/null; then echo cuda13; \
elif [ "$$driver" -ge 525 ] 2>/dev/null; then echo cuda12; \
elif grep -qsiE 'PCI_ID=1AE0:(0027|005E|0062|0063|006F|0076)' /sys/bus/pci/devices/*/uevent; then echo tpu; \
elif [ -n "$$TPU_NAME$$TPU_WORKER_ID$$TPU_ACCELERATOR_TYPE" ]; then echo tpu; \
else echo cpu; fi
endef
ifndef ACCELERATOR
ACCELERATOR := $(shell $(DETECT))
endif

# Named after the accelerator, so that asking for another one installs that.
READY := .venv/.ready-$(ACCELERATOR)

.PHONY: help setup demo sweep test test-slow lint bench notebooks wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s%s\n", $$1, $$2}' Makefile
	@echo "Options: PYTHON=python3.12   ACCELERATOR=cpu, cuda12, cuda13 or tpu (found: $(ACCELERATOR))"

setup: $(READY) ## make .venv and install everything into it

demo: $(READY) ## see the whole way from data to scores in a few minutes
	$(BIN)/omarl demo

sweep: $(READY) ## train, evaluate and report a grid, or continue it: make sweep GRID=experiments/….toml
	@test -n "$(GRID)" || { echo "Which grid? For example: make sweep GRID=experiments/omar_particle.toml" >&2; exit 1; }
	$(BIN)/omarl sweep $(GRID)

test: $(READY) ## run the fast tests
	unset JAX_NUM_CPU_DEVICES; $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(READY) ## run the tests that learn for minutes
	$(BIN)/pytest -m slow

lint: $(READY) ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(if $(SHORT),$(READY),.venv/.bench) ## measure speed against NumPy and PyTorch, or in minutes with SHORT=1
	$(BIN)/python experiments/benchmarks/bench.py $(if $(SHORT),--short)

notebooks: $(READY) ## run the notebooks, and write them with their outputs
	$(BIN)/python experiments/notebooks/build.py

wheel: $(READY) ## build the wheel, and try it and the notebooks in an empty environment
	.ci/wheel

clean: ## remove .venv, caches and builds, but no results
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
	find omarl_jax envs experiments tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "omarl_jax needs Python 3.11 or later; name one, for example: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv

$(READY): requirements.lock pyproject.toml | $(BIN)/uv
	rm -f .venv/.ready-* .venv/.bench
	$(BIN)/uv pip sync --python $(BIN)/python --compile-bytecode requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c requirements.lock "jax[$(ACCELERATOR)]"
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -e .
	touch $@

# Only the baseline uses PyTorch, and on the CPU.
.venv/.bench: $(READY)
	$(BIN)/python -m pip install -c requirements.lock -e ".[bench]"
	touch $@
