# make demo: compress, evaluate and export a network for 8x8 digits, from a bare checkout.
# make test, make lint: what .ci/run runs, in an environment that is kept.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed

.PHONY: venv dev demo test lint api test-versions clean

venv: $(CORE)

dev: $(DEV)

demo: $(CORE)
	$(BIN)/python examples/digits_demo.py --out demo

test: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# After a change of public names or signatures, which a test compares with the kept list.
api: $(DEV)
	PYTHONPATH=. $(BIN)/python tests/public_api.py

# On the oldest and on the newest Keras and TensorFlow that pyproject.toml accepts.
test-versions:
	.ci/versions

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find tfmot_atmc tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than pyproject.toml once its dependencies are installed.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(DEV): pyproject.toml $(CORE)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
