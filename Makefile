# Two commands do everything on a fresh machine: `make train` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
SET ?=

.PHONY: help train sweep test unit cluster gpu lint churn bench ui clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

train: $(READY)  ## install, then train the byte-level language model on two workers
	$(BIN)/shoal train jobs/gpt.py $(foreach s,$(SET),--set $(s))

test: $(READY)  ## install, then all tests that this machine can run
	$(BIN)/python -m pytest

unit: $(READY)  ## the tests without Ray: seconds
	$(BIN)/python -m pytest -m unit

cluster: $(READY)  ## the tests on a one-machine Ray cluster
	$(BIN)/python -m pytest -m cluster

gpu: $(READY)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

lint: $(READY)  ## formatting, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

churn: $(READY)  ## see it: a kill, a join and a leave in a live run, then audit and verify
	$(BIN)/python -m benchmarks.live

bench: $(READY)  ## the measurements behind benchmarks/README.md
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.feed
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.recovery --cost
	$(BIN)/python -m benchmarks.simulated
	$(BIN)/python -m benchmarks.control_plane
	$(BIN)/python -m benchmarks.reshard
	$(BIN)/python -m benchmarks.exact
	$(BIN)/python -m benchmarks.data_efficiency
	$(BIN)/python -m benchmarks.sweep

sweep: $(READY)  ## find a schedule and a batch size for the language model, in a few minutes
	$(BIN)/shoal sweep tuning/lr_schedule.py $(foreach s,$(SET),--set $(s))

ui: $(READY)  ## the record in a browser
	$(BIN)/shoal ui

clean:  ## remove the environment (not the runs)
	rm -rf $(VENV)

# The exact tested set. Without constraints.txt an open range would pull gigabytes that this project never saw.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else f"Python 3.10 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}; name another one: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (some minutes the first time) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# Where Python may not write byte code, every worker process would compile these modules again.
	@$(BIN)/python -m compileall -q platform/shoal
	@touch $(READY)
