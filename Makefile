# Each target works on a fresh machine with Python 3.11 or newer, and from any directory with `make -C`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
MARKS := $(VENV)/.installed
# Tests wait for processes, databases and deadlines half of their time.
WORKERS ?= $(shell echo $$((2 * $$(nproc 2>/dev/null || echo 2))))

# Else every process of a test compiles the sources again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install run test test-long check coverage bench settings migration clean

help:
	@echo 'make install     install what is needed, and start nothing'
	@echo 'make run         install what is needed and start the server'
	@echo 'make test        run the tests; ARGS=… passes arguments to pytest'
	@echo 'make test-long   run the tests that take long: outages, kills, attacks, generated requests'
	@echo 'make check       check format, lint, types, imports, spelling and English'
	@echo 'make coverage    run the tests and report which lines they reach; ARGS=… as above'
	@echo 'make bench       print the performance table; FULL=1 with 1,000,000 messages'
	@echo 'make settings    write .env.example and the table of settings in README.md'
	@echo 'make migration NAME=what_changes   write a new revision of the schema'

install: $(MARKS)-run

run: $(MARKS)-run
	$(BIN)/python main.py

test: $(MARKS)-dev
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not long' $(ARGS)

test-long: $(MARKS)-dev
	LONG=1 $(BIN)/python -m pytest -n $(WORKERS) -m 'long or machine or hypothesis' $(ARGS)

bench: $(MARKS)-dev
	$(BIN)/python -m benchmarks $(if $(FULL),--size full)

check: $(MARKS)-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m tools.prose

coverage: $(MARKS)-dev
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not long' --cov --cov-report=term --cov-report=html $(ARGS)

migration: $(MARKS)-run
	@case '$(NAME)' in ''|*[!a-z0-9_]*) echo 'NAME must be small letters, digits and _: make migration NAME=what_changes' >&2; exit 2;; esac
	@if ls alembic/versions/*_'$(NAME)'.py >/dev/null 2>&1; then echo 'there is a revision of that name already' >&2; exit 2; fi
	$(BIN)/alembic revision -m '$(NAME)'

settings: $(MARKS)-run
	$(BIN)/python -m app.setting_docs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)

$(MARKS)-run: requirements.txt | $(BIN)/python
	$(PIP) -r requirements.txt
	touch $@

$(MARKS)-dev: requirements.txt requirements-dev.txt | $(BIN)/python
	$(PIP) -r requirements-dev.txt
	touch $@ $(MARKS)-run

clean:
	rm -rf $(VENV)
