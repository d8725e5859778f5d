# Everything runs in .venv, made on first use and again when pyproject.toml changes.
# The test environment contains torch, for parity only. Where pip would choose its CUDA build (gigabytes),
# point PIP_EXTRA_INDEX_URL at an index of CPU builds, or install one into .venv beforehand.

BIN := .venv/bin
COMMA := ,
# The first interpreter that is new enough and can make a virtual environment; `make PYTHON=... test` overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

LATEST ?= $(shell for p in python3.13 python3.12 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-latest lint slow train-tiny clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST)

demo: .venv/base.stamp ## a model in the package watches a generated game; installs the base package only
	$(BIN)/svlm demo

serve: .venv/serve.stamp ## the live page in a browser, on this machine only
	$(BIN)/svlm serve

train-tiny: .venv/test.stamp ## a model of the game from nothing; two hours on two CPU cores
	$(BIN)/svlm tiny --out runs/tiny

test: lint ## lint, then the fast tests
	$(BIN)/pytest -n 2 --dist worksteal

test-latest: .venv-latest/test.stamp ## the fast tests but parity, on the newest Python here (3.12 or newer) and the newest jax
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv-latest/bin/pytest -n 2 --dist worksteal --ignore tests/parity

lint: .venv/test.stamp ## ruff, ruff format, pyright
	$(BIN)/pre-commit run --all-files

slow: .venv/test.stamp ## the slow tests only
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/pytest -n 2 --dist worksteal -m "slow and not gpu"

clean: ## remove .venv, caches and build products
	rm -rf .venv .venv-latest build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(or $(PYTHON),false) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo 'PYTHON: got "$(PYTHON)", expected Python >= 3.11 with venv; install one or run make PYTHON=/path/to/python3' >&2; exit 1; }
	$(PYTHON) -m venv .venv

# What pip is about to do, since it is silent for minutes: $(call install,EXTRAS,SIZE,TIME).
define install
	@echo 'installing svlm-jax$(1) into .venv: $(2), $(3); only the first time, and when pyproject.toml changes' >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.$(1)'
endef

.venv/base.stamp: pyproject.toml | $(BIN)/python
	$(call install,,a download of 300 MB and 1.1 GB on disk,one to three minutes)
	@touch $@

.venv/serve.stamp: pyproject.toml | $(BIN)/python
	$(call install,[serve],a download of 300 MB and 1.1 GB on disk,one to three minutes)
	@touch $@ .venv/base.stamp

.venv/test.stamp: pyproject.toml | $(BIN)/python
	$(call install,[train$(COMMA)test$(COMMA)parity$(COMMA)lint],gigabytes with torch: see the top of this file,some minutes)
	@touch $@ .venv/base.stamp

# Beside .venv, whose jax is the newest that its Python takes: 3.11 stays at 0.10.
.venv-latest/test.stamp: pyproject.toml
	@$(or $(LATEST),false) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null \
		|| { echo 'LATEST: got "$(LATEST)", expected Python >= 3.12; run make LATEST=/path/to/python3.12 test-latest' >&2; exit 1; }
	$(LATEST) -m venv .venv-latest
	@echo 'installing svlm-jax[train,test] into .venv-latest: 1.3 GB on disk, one to three minutes' >&2
	@.venv-latest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade jax -e '.[train,test]'
	@touch $@
