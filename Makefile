# make install | demo | results | test | test-slow | lint | docs: each makes .venv by itself and runs again in seconds.
#   PYTHON=/path/to/python3.11    another interpreter (3.10 to 3.12) for .venv
#   EXTRAS=mmcv-lite,timm,dev     what to install; EXTRAS=mmcv,timm,dev takes compiled mmcv instead
#   SEED=N                        of make demo: its scenes and its training (0; the first scenes: drawn anew each time)
#   CONSTRAINTS=FILE              other pins, for example with a CUDA build of torch
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= mmcv-lite,timm,dev
CONSTRAINTS ?= requirements/constraints.txt
STAMP := $(VENV)/.bevstack-installed
TEST_STAMP := $(VENV)/.bevstack-test-extras
DOCS_STAMP := $(VENV)/.bevstack-docs-extra
SLOW_STAMP := $(VENV)/.bevstack-slow-extras
DEMO_DATA ?= data/nuscenes-synthetic
DEMO_OUT ?= work_dirs/demo
DEMO_TRAIN_SCENES ?= 100
DEMO_VAL_SCENES ?= 16
DEMO_ARGUMENTS ?= --image-size 448x252
SEED ?=
# what make results scores, each NAME=CONFIG:CHECKPOINT, and the seed of its world
RESULTS_MODELS ?= demo=configs/demo.py:$(DEMO_OUT)
RESULTS_SEED ?= 20770

.PHONY: install demo results test test-slow lint docs doctor clean

install: $(STAMP)
	@echo "bevstack is installed in $(VENV); see what was found with: $(BIN)/python -m bevstack.doctor"

$(STAMP): pyproject.toml $(CONSTRAINTS) requirements/choose_python.sh
	@if [ ! -x $(BIN)/python ]; then \
	    python=$$(sh requirements/choose_python.sh $(PYTHON)) || exit 2; \
	    echo "[1/3] creating $(VENV) with $$python"; \
	    "$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 2; }; \
	fi
	@echo "[2/3] installing packages (a few minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check --prefer-binary \
	    -c $(CONSTRAINTS) -e '.[$(EXTRAS)]' | grep --line-buffered -v '^Requirement already satisfied'; \
	    exit $${PIPESTATUS[0]}
	@echo "[3/3] looking at what was installed"
	@$(BIN)/python -m bevstack.doctor
	@touch $@

demo: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" DEMO_DATA="$(DEMO_DATA)" DEMO_OUT="$(DEMO_OUT)" SEED="$(SEED)" \
	    TRAIN_SCENES="$(DEMO_TRAIN_SCENES)" VAL_SCENES="$(DEMO_VAL_SCENES)" \
	    SYNTHETIC_ARGUMENTS="$(DEMO_ARGUMENTS)" bash tools/demo.sh

results: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" RESULTS_MODELS="$(RESULTS_MODELS)" RESULTS_SEED="$(RESULTS_SEED)" \
	    bash tools/results.sh

# what no user needs to run, but tests do: triton's interpreter, exporters and other runtimes
$(TEST_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check --prefer-binary -q \
	    -c $(CONSTRAINTS) -e '.[triton,peers,parquet,rerun,tensorboard,docs]'
	@touch $@

# Ray, whose workers a slow test kills: 76 MB more
$(SLOW_STAMP): $(TEST_STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check --prefer-binary -q -c $(CONSTRAINTS) -e '.[fleet]'
	@touch $@

test: lint $(TEST_STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" tests

test-slow: $(SLOW_STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

$(DOCS_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check --prefer-binary -q -c $(CONSTRAINTS) -e '.[docs]'
	@touch $@

# a link that leads nowhere ends it; `make test` builds the same (tests/test_site.py)
docs: $(DOCS_STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml
	@echo "the site begins at work_dirs/site/index.html"

doctor: $(STAMP)
	@$(BIN)/python -m bevstack.doctor

clean:
	rm -rf work_dirs build dist .pytest_cache .ruff_cache .import_linter_cache .mypy_cache
