# `make demo` and `make test` set up everything that they need in .venv; nothing else is changed on the machine.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := ucseg_runtime export serving model_repository training tests benchmarks docs_hooks

.PHONY: demo test test-long check format docs clean

demo: $(VENV)/.base
	$(BIN)/ucseg demo --out demo-output --overwrite

# Three at a time, whole files each, which two cores can do: much of the suite waits for servers and other processes.
# 2 GB of memory each.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/.dev
	UCSEG_TEST_LONG=1 $(BIN)/python -m pytest --timeout 3600

check: $(VENV)/.dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy -p ucseg_runtime -p ucseg_export -p ucseg_serving -p ucseg_training
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# Into site/; a warning is an error. Open site/index.html, no server is needed.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo-output site .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.base
