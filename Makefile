# Each target works on a fresh machine with Python 3.11 or newer, and from any directory with `make -C`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
MARKS := $(VENV)/.installed

.PHONY: run test check bench settings clean

run: $(MARKS)-run
	$(BIN)/python main.py

test: $(MARKS)-dev
	$(BIN)/python -m pytest -n auto

bench: $(MARKS)-dev
	$(BIN)/python -m benchmarks $(if $(FULL),--size full)

check: $(MARKS)-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

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
