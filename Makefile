# Wardcast. `make demo` shows it, `make test` proves it. Both set themselves up in .venv/ the first time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin

# Some build environments export these; both would change what runs here.
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH

# Two processes, each with whole files: the suite is mostly waiting for processes of its own.
PYTEST_ARGS ?= -n 2 --dist loadfile
NAME ?=
export PYTHON UPGRADE

.PHONY: help demo test check format bench lock setup clean

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16

demo: setup ## a simulated hospital streams into the service: alerts, bed forecast, drift report, then the URLs
	@$(BIN)/wardcast demo

test: setup ## run the tests (set WARDCAST_DATA to include those on real patients)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup ## format, lint, types, walls; all four, even where one is red
	@status=0; for tool in "ruff format --check ." "ruff check ." mypy lint-imports; do \
	  echo "$$tool"; $(BIN)/$$tool || status=1; done; exit $$status

format: setup ## put the code in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## one benchmark of tests/bench/, one JSON line a figure: make bench NAME=features
	@$(BIN)/python tests/bench/run.py $(NAME)

lock: setup ## write requirements/*.lock anew from pyproject.toml (UPGRADE=1 for the newest versions)
	@requirements/lock.sh

setup: ## .venv/ from the lock of this Python, hashes checked; does nothing when it is already that
	@requirements/install.sh

clean: ## remove what setup, test and check made; never var/, which holds the store and its key
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
