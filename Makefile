# Every target sets up what it needs in .venv; nothing has to be installed before but Python 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Optional, from Debian: Fashion-MNIST, and the browser that the tests of the HTML report drive.
PACKAGES := dataset-fashion-mnist chromium chromium-driver

export OMP_NUM_THREADS ?= 1

.PHONY: help test test-fast test-all lint demo table docs packages clean

help:
	@echo "make demo      train small networks, prune them by every method, leave a report in runs/demo"
	@echo "make test      lint, types, doctests and tests: minutes"
	@echo "make test-fast the tests of core, tracing and apply: 2 minutes"
	@echo "make test-all  the slow tests, too"
	@echo "make table     run the demonstration and write its table into README.md"
	@echo "make docs      build the API reference from the docstrings into build/api"
	@echo "make packages  install Debian's packages with Fashion-MNIST and a browser (root only)"

# --no-compile: Python compiles what it imports, a third of what comes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Secateur needs Python 3.11 or later: make PYTHON=python3.11" * (sys.version_info < (3, 11)) or None)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

packages:
	@for package in $(PACKAGES); do \
	  if dpkg -s $$package >/dev/null 2>&1; then continue; fi; \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing Debian's $$package"; \
	    test -n "$$updated" || apt-get update -qq; updated=yes; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$package >/dev/null \
	      || echo "could not install $$package: what needs it is skipped"; \
	  else echo "$$package is not installed: what needs it is skipped (sudo make packages installs it)"; fi; \
	done

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy

test: $(READY) packages lint
	$(BIN)/pytest -n 2 --dist loadfile

test-fast: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile tests/core tests/tracing tests/apply tests/test_imports.py tests/test_pruning.py tests/test_schedule.py

test-all: $(READY) packages lint
	$(BIN)/pytest -n 2 --dist loadfile -m ''

demo: $(READY) packages
	$(BIN)/secateur demo --out runs/demo

table: demo
	$(BIN)/python benchmarks/readme_table.py runs/demo/runs.json README.md

docs: $(READY)
	$(BIN)/python docs/api.py build/api

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
