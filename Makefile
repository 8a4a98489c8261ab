# SPDX-License-Identifier: Apache-2.0
# Each target does its own set-up: `make demo` and `make test` work on a fresh clone, in either order.

PYTHON ?= python3
EXAMPLE ?= click
DATA ?=
PYTHONS ?=

BIN := .venv/bin
STAMP := .venv/.installed
SOURCES := proto/rowhouse ps_server ps_client feature_cross tools $(wildcard examples benchmarks) tests
# --no-compile: most modules of these packages are never imported, so compiling them all doubles the install.
PIP_FLAGS := -qq --disable-pip-version-check --no-input --root-user-action=ignore --no-compile

.PHONY: help test test-lowest demo lint site clean venv bench figures
.DEFAULT_GOAL := help

help:
	@echo "make demo [EXAMPLE=click|retail|dota2] [DATA=file.parquet]   train, kill -9, recover, report"
	@echo "make test    stubs, format, lint, types, every tier of tests, coverage"
	@echo "make bench   ours beside its peers, about 15 minutes: prints the table of goals; page in build/bench/report"
	@echo "make figures every workload beside every peer, two hours: benchmarks/result.json, docs/performance.md"
	@echo "make lint    stubs, format, lint, types"
	@echo "make test-lowest [PYTHONS='python3.11 …']   tests/smoke with the lowest versions that pyproject.toml declares"
	@echo "make site    the documentation as pages, in build/site"
	@echo "make venv    the environment in .venv (the targets above make it themselves)"
	@echo "make clean   remove .venv, build/ and caches"

# The stamp is made last, so an install that broke off is done again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rowhouse needs Python 3.11 or later; set PYTHON=, $(PYTHON) is older" >&2; exit 1; }
	@echo "making .venv (a few minutes the first time)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[torch,author,docs,dev]'
	@touch $@

venv: $(STAMP)

lint: $(STAMP)
	$(BIN)/python tools/generate_stubs.py --check
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy $(SOURCES)
	@$(BIN)/python -m tests.architecture

test: lint
	$(BIN)/coverage erase
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not soak" --cov --cov-report=term --durations=10 tests
	$(MAKE) --no-print-directory test-lowest

# With this environment's Python and the newest one that has all wheels, unless PYTHONS names others.
test-lowest: $(STAMP)
	$(BIN)/python -m tools.lowest $(foreach python,$(PYTHONS),--python $(python))

site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

demo: $(STAMP)
	$(BIN)/python -m examples.demo --example $(EXAMPLE) $(if $(DATA),--data "$(DATA)")

# A workload that failed is in the table too, with its reason; the target fails at its end.
bench: $(STAMP)
	$(BIN)/python -m benchmarks run '*' --quick --output build/bench/latest.json || failed=1; \
	  $(BIN)/python -m benchmarks report build/bench/latest.json --output build/bench/report && \
	  $(BIN)/python -m benchmarks table build/bench/latest.json && test -z "$$failed"

figures: $(STAMP)
	$(BIN)/python -m benchmarks run '*' --output benchmarks/result.json
	$(BIN)/python -m benchmarks report benchmarks/result.json --output build/bench/report
	$(BIN)/python -m benchmarks table benchmarks/result.json --write docs/performance.md

clean:
	rm -rf .venv build .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
