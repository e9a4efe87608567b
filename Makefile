# `make` alone lists the targets. The environment is created once in .venv, and again when the lock changes.
PYTHON ?= python3
VENV_PYTHON := .venv/bin/python
STAMP := .venv/.raylign-installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow check bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with everything, CPU builds (make PYTHON=python3.12 picks the interpreter)

$(STAMP): requirements/cpu.lock pyproject.toml scripts/install.py
	@$(PYTHON) scripts/install.py

quickstart: $(STAMP) ## align a small model with DPO and PPO, and compare them
	@$(VENV_PYTHON) recipes/quickstart.py

test: $(STAMP) ## run the tests, except the slow ones
	@$(VENV_PYTHON) -m pytest -m "not slow and not gpu"

test-slow: $(STAMP) ## run the slow tests
	@$(VENV_PYTHON) -m pytest -m "slow and not gpu"

check: $(STAMP) ## check lint, format and types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/pyright

bench: $(STAMP) ## compare with TRL and with a plain loop
	@$(VENV_PYTHON) benchmarks/dpo.py
	@$(VENV_PYTHON) benchmarks/ppo.py

clean: ## remove everything generated: environments, caches, runs
	rm -rf .venv .bench runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
