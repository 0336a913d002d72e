# Every target sets itself up: a virtual environment in .venv from the pinned lock, nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.13.9
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready
DEMO ?= demo
FUNCTIONS := algorithms augment losses metrics models samplers training uncertainty weights
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder --durations=25
# Where the environment forbids .pyc files, every process takes 6 s longer to import.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-shipping compat lowest lint format colabs bench networks docs site lock clean help

help:  ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxlab needs Python >= 3.11; $(PYTHON) is older. Say which: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

demo: $(READY)  ## train a PFN (about 2 minutes), show its posterior of real series beside a grid mixture
	$(BIN)/python -m experiments.bayes.pfn --preset=$(DEMO) --task=series --seeds=1 --workdir=runs/demo-$(DEMO)
	@echo "picture: runs/demo-$(DEMO)/figure.png"

test: $(READY)  ## the tests, of smokes one a family, of notebooks one
	$(PYTEST) -m "not shipping and (first_of_family or not smoke and not notebook)" $(TEST_FLAGS)

test-all: $(READY)  ## every test
	$(PYTEST) -m "not shipping" --junitxml=.cache/tests.xml
	$(MAKE) test-shipping

test-shipping: $(READY)  ## with XLA's own flags: the tests that need them, or FILES="tests/..."
	JAXLAB_XLA=shipping $(PYTEST) $(or $(FILES),-m shipping --junitxml=.cache/tests-shipping.xml)

.venv-compat/.ready: requirements.lock pyproject.toml $(READY)
	$(PYTHON) -m venv .venv-compat
	VIRTUAL_ENV=.venv-compat $(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	.venv-compat/bin/python -m pip install --quiet --disable-pip-version-check -e '.[compat]'
	@touch $@

compat: .venv-compat/.ready  ## the tests against transformers, PEFT, TRL, cleanlab and librosa (2 GB in .venv-compat)
	.venv-compat/bin/python -m pytest tests/compat $(TEST_FLAGS)

.venv-lowest/.ready: pyproject.toml $(READY)
	$(PYTHON) -m venv .venv-lowest
	VIRTUAL_ENV=.venv-lowest $(BIN)/uv pip install --quiet --resolution lowest-direct --editable '.[lowest]'
	@touch $@

lowest: .venv-lowest/.ready  ## the tests of the functions with the oldest versions that are allowed
	.venv-lowest/bin/python -m pytest -n $(WORKERS) $(addprefix tests/,$(FUNCTIONS)) tests/test_programs.py -m "not shipping" $(TEST_FLAGS)

lint: $(READY)  ## ruff (lint and format), the rules of the house, the generated tables
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m experiments.catalogue --check

format: $(READY)  ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

colabs: $(READY)  ## execute the notebooks in place
	$(BIN)/python -m colabs.execute --write

bench: $(READY)  ## measure against peers (installs the `bench` extra)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks

networks: $(READY)  ## train the networks of PFNRegressor() and PFNClassifier() anew (three quarters of an hour)
	$(BIN)/python -m experiments.default_networks --workdir=runs/default_networks --output=jaxlab/models/networks

docs: $(READY)  ## make the generated tables anew
	$(BIN)/python -m experiments.catalogue --write

site: $(READY)  ## build the site into build/site; a warning or a broken link ends the build
	rm -rf build/site build/doctrees docs/reference
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -q -W --keep-going -n -c docs -d build/doctrees . build/site

lock: $(READY)  ## resolve the dependencies anew
	$(BIN)/uv pip compile --quiet pyproject.toml --extra test --universal \
	  --python-version 3.11 --generate-hashes --no-header --upgrade -o requirements.lock

clean:  ## remove what was built, not what was measured
	rm -rf .venv .venv-compat .venv-lowest .cache build dist .pytest_cache .ruff_cache
