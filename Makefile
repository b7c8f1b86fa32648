# Both commands do all of their own set-up, once: an isolated environment in .venv from requirements.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: train test lint clean

train: $(READY) ## the quickstart: trains, prunes while training, prints result and cost
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no train.py --recipe recipes/quickstart.yaml

test: $(READY) lint ## lint, types, tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(READY): requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf .venv
