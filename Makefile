# Everything runs in .venv, made from $(PYTHON); no environment has to be active. `make help` lists the targets.
SHELL = /bin/sh
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV = .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.setup-stamp

# The other tools that ours is compared with, beside what the tests need; apart, because of all that they bring with them.
PEERS = .venv-peers
PEERS_STAMP = $(PEERS)/.setup-stamp

# Torch and the test workers share the cores instead of fighting for them.
# Tests that share what is costly to find stay in one worker (xdist_group).
# Compiled sources are kept, whatever the environment says: every worker and every process that a test starts reads them.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

# Coverage is that of the fast tests: tracing costs 40 % of their time, and the slow ones add three points.
COVERAGE = --cov --cov-report=term
TRACE =
# TOGETHER=1: `make check test` takes fast and slow tests in one go, which collects them once, and measures no coverage.
TOGETHER =
ifneq ($(TOGETHER),)
ifeq ($(filter test slow,$(MAKECMDGOALS)),)
$(error TOGETHER=1: expected the goals `check test`, because the fast tests are left to the slow ones)
endif
endif

.PHONY: help setup demo test check lint fast slow peers format build clean distclean

help:
	@echo 'make setup      create .venv with polarspike (editable) and what the tests need; does nothing when up to date'
	@echo 'make demo       train, convert and verify a spiking network on real digits (ARGS="..." passes options)'
	@echo 'make test       all tests; line and branch coverage by the fast ones of at least 90 %'
	@echo 'make check      format, lint, types, import floors, and the fast tests (make lint, make fast: one of the two)'
	@echo 'make peers      our rivals against SpikingJelly, Sinabs and snnTorch, in an environment of their own (.venv-peers)'
	@echo 'make format     rewrite the files as `make check` wants them'
	@echo 'make build      source archive and wheel into dist/'
	@echo 'make clean      remove what was built and cached; make distclean removes the environments too'

setup: $(STAMP)

# Python compiles what it loads; compiling all that is installed takes a minute and a half.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	    "polarspike needs Python 3.11 or newer, got %d.%d; try: make setup PYTHON=python3.12" % sys.version_info[:2])'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[dev,vision]'
	@touch $@

# Sinabs wants an older nir than ours, which an older nirtorch goes with.
$(PEERS_STAMP): pyproject.toml constraints.txt
	test -x $(PEERS)/bin/pip || $(PYTHON) -m venv $(PEERS)
	grep -v '^nir' constraints.txt > $(PEERS)/constraints.txt
	$(PEERS)/bin/python -m pip install --no-compile -c $(PEERS)/constraints.txt -e '.[baselines]' pytest hypothesis
	@touch $@

demo: $(STAMP)
	$(BIN)/polarspike demo $(ARGS)

test: TRACE = $(COVERAGE)
test: fast slow

# The fast tests stand behind both; `make check test` runs them once.
check: lint fast

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: $(STAMP)
ifndef TOGETHER
	$(PYTEST) -m 'not slow' $(TRACE) $(ARGS)
endif

slow: $(STAMP)
ifdef TOGETHER
	$(PYTEST) $(ARGS)
else
	$(PYTEST) -m slow $(ARGS) || [ $$? -eq 5 ]  # 5: ARGS has chosen none
endif

# A tool that is not there would be a test that is skipped, which -rs says.
peers: $(PEERS_STAMP)
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m pytest -rs tests/baselines/test_peers.py $(ARGS)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

build: $(STAMP)
	$(BIN)/python -m build

clean:
	rm -rf build dist .coverage .coverage.* htmlcov .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(PEERS)
