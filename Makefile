# Each does all of its own set-up, once: an isolated environment in .venv from requirements.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Tests start hundreds of processes: each would compile what it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help train quick test pytest lint docs clean

LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no train.py
STAMP := runs/quickstart/$(shell date +%Y%m%d-%H%M%S)

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(READY) ## the quickstart: a dense run, one that is pruned while it trains, and both side by side
	$(LAUNCH) --recipe recipes/base/digits/digits_cnn.yaml --output $(STAMP)/dense
	$(LAUNCH) --recipe recipes/quickstart.yaml --output $(STAMP)/pruned
	$(BIN)/python tables.py beside $(STAMP)/dense $(STAMP)/pruned

quick: $(READY) ## the quick tests of everything: before each commit
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --durations 5 --durations-min 2

test: $(READY) ## lint, types and all tests
	@$(MAKE) --no-print-directory --jobs 2 lint pytest

pytest: $(READY) ## all tests alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY) ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(READY) ## the pages of this checkout as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(READY): requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	touch $@

clean: ## remove the environment
	rm -rf .venv
