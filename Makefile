# Every target prepares its own virtual environment: no step comes before `make demo` or `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
export PYTHONSAFEPATH := 1

.PHONY: help demo test test-slow lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   the whole chain on real text, under five minutes on two cores"
	@echo "make test   the tests, under ten minutes on two cores"
	@echo "make lint   formatting, style and types"
	@echo "make bench  the optimizer's speed beside torch's own, and what a sweep costs"

$(READY) $(DEV): pyproject.toml setup.py constraints.txt
	@echo "Setting up $(VENV) (a minute or two, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(EXTRAS)'
	@touch $@

$(DEV): EXTRAS := [dev]

demo: $(READY)
	$(BIN)/widthwise demo

test: $(DEV)
	$(BIN)/python -m pytest

test-slow: $(DEV)
	$(BIN)/python -m pytest -m slow

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(DEV)
	$(BIN)/python benchmarks/optimizer.py
	$(BIN)/python benchmarks/sweep.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
