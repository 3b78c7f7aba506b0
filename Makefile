# Everything a newcomer or CI runs. Needs Python 3.11 or newer with pip, and make; the rest goes into .venv.
#
#   make PYTHON=python3.13 test      another interpreter (after `make clean`, when .venv exists already)
#   make test ARGS='-k placeholders' anything pytest understands
#   make demo KEEP=1                 leave the demo's server and daemon running

PYTHON ?= python3
ARGS ?=
KEEP ?=

VENV := .venv
BIN := $(VENV)/bin
# Newer than pyproject.toml and constraints.txt exactly when .venv holds what they ask for.
STAMP := $(VENV)/.installed
SOURCES := worker tests examples bench

# A user's pip or interpreter configuration must not leak into .venv.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_USER := 0
export PYTHONNOUSERSITE := 1
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-thorough test-long test-ui screenshots check chaos bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## See real flow runs, job variables from every layer, on a real Prefect server (KEEP=1 leaves it up)
	@$(BIN)/python examples/demo.py $(if $(filter-out 0 no false,$(KEEP)),--keep)

test: $(STAMP) ## Test what the product promises: unit, server, parity, faults (ARGS='...' goes to pytest)
	$(BIN)/python -m pytest -m "not ui and not long and not thorough" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-thorough: $(STAMP) ## Test the rest that CI does: every command, service managers, hooks, interpreters, chaos
	$(BIN)/python -m pytest -m "thorough and not long" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: $(STAMP) ## Run the tests that take minutes: outages, shortages, deaths, more parity; before a release
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-ui: $(STAMP) ## Use Prefect's own UI in a real browser (needs Debian's chromium and chromium-driver)
	@for program in chromium chromedriver; do command -v $$program >/dev/null || { \
	    echo "make: no $$program here. On Debian and Ubuntu: apt-get install chromium chromium-driver" >&2; exit 1; }; done
	$(BIN)/python -m pytest -m ui $(ARGS) tests/ui

screenshots: $(STAMP) ## Take the pictures in docs/images anew (needs what test-ui needs)
	$(BIN)/python -m tests.ui.screenshots docs/images

RUNS ?= 60
KILLS ?= 15

chaos: $(STAMP) ## Kill daemons, flows and the server at random, and prove that nothing was lost (RUNS=60 KILLS=15)
	$(BIN)/python -m tests.chaos --runs $(RUNS) --kills $(KILLS) $(ARGS)

bench: $(STAMP) ## Measure stock Prefect and headrace side by side: docs/performance.md (ARGS=--quick)
	$(BIN)/python -m bench $(ARGS)

check: $(STAMP) ## Check format, lint, types (strict) and import layers
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

venv: $(STAMP) ## Build .venv, or bring it up to date

clean: ## Remove .venv and everything that the other targets leave behind
	rm -rf $(VENV) .demo .bench .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist

# An interpreter without ensurepip (Debian splits it off) still does, as long as its own pip can install into another
# environment (22.3 and newer); so nothing more than Python and pip is ever asked for.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "make: no '$(PYTHON)' here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1), and 3.11 or newer is needed." \
	         "Name another one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@if ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
	    echo "Building $(VENV): about a minute, once."; \
	    if "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
	        "$(PYTHON)" -m venv --clear $(VENV); \
	    elif "$(PYTHON)" -m venv --help >/dev/null 2>&1 && "$(PYTHON)" -m pip --help 2>/dev/null | grep -q -e --python; then \
	        "$(PYTHON)" -m venv --clear --without-pip $(VENV) && "$(PYTHON)" -m pip --python $(BIN)/python install -q pip; \
	    else \
	        echo "make: '$(PYTHON)' can make no virtual environment (no ensurepip module, no pip 22.3 or newer)." \
	             "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	    fi; \
	fi
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,prefect]'
	@touch $@
