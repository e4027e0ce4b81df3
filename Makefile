# Two commands do everything from a bare machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OUT ?= out
ARGS ?=

.PHONY: quickstart test test-all lint format benchmark clean help

help:
	@echo "make quickstart   set everything up, train and attack on synthetic faces, write $(OUT)/report.html"
	@echo "make test         set everything up and pass the tests, those marked slow left out"
	@echo "make test-all     the same with all tests"
	@echo "make lint         ruff and mypy"
	@echo "make benchmark    time what benchmarks/ measures"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ppfr needs Python 3.11 or newer; give one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/ppfr quickstart --out $(OUT) $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto $(ARGS)

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n auto -m "" $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

benchmark: $(INSTALLED)
	$(BIN)/python benchmarks/dct.py

clean:
	rm -rf $(VENV) build dist
