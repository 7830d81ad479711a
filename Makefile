# Two commands set up everything by themselves: `make demo` (light) and `make test` (everything).

PYTHON ?= python3
VENV := .venv
CORE := .venv-core
BIN := $(VENV)/bin

.PHONY: help setup demo test explore lint format bench docs pins clean

help:
	@echo "make demo    render smears, find and count their cells, open demo/index.html (no torch needed)"
	@echo "make test    the whole test suite and its environment"
	@echo "make explore the same with new, and more, drawn examples in the property tests"
	@echo "make lint    style, types, architecture"
	@echo "make bench   speed against named peers"
	@echo "make docs    the generated reference in docs/"
	@echo "make setup   .venv with every extra"

# uv installs; its cache makes the second environment quick.
define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet uv
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python -r $(2)
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --no-deps -e .
	@touch $@
endef

$(VENV)/.ready: pyproject.toml requirements/all.txt
	$(call install,$(VENV),requirements/all.txt)

$(CORE)/.ready: pyproject.toml requirements/core.txt
	$(call install,$(CORE),requirements/core.txt)

setup: $(VENV)/.ready

demo: $(CORE)/.ready
	$(CORE)/bin/cytolens demo --out demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2

explore: $(VENV)/.ready
	CYTOLENS_EXAMPLES=explore $(BIN)/python -m pytest -n 2

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/run_all.py

docs: $(VENV)/.ready
	$(BIN)/python docs/generate.py

pins: $(VENV)/.ready
	$(BIN)/uv pip compile pyproject.toml --python-version 3.11 --no-header -q -o requirements/core.txt
	$(BIN)/uv pip compile pyproject.toml --python-version 3.11 --no-header -q --all-extras -o requirements/all.txt

clean:
	rm -rf demo .pytest_cache .ruff_cache .hypothesis .import_linter_cache
