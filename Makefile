# make demo   ten tasks learned one after the other, none forgotten (a bare checkout is enough)
# make test   what `make lint` checks, then the tests but those marked slow
# make test-all  the same with all tests, as continuous integration runs them
# make lint   style, the direction of imports, types
# make docs   the documentation site, in build/site
# make fuzz   damaged and made-up files, many more than the tests try (FUZZ=20000)
# make soak   what the tests sample, whole: random lives (SOAK=100000 events), calls cut off at every line, runs killed at
#             every file operation
# make coverage  which lines and branches of eidetic_kernels its own tests run
# make bench  the measurements
# make clean  removes what the others made, runs excepted
#
# PYTHON is the interpreter (3.10 or newer) the environment is made from, VENV where it is made. setup.py says which
# variables steer the compilation.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip install --disable-pip-version-check
COMPILED := pyproject.toml setup.py $(wildcard csrc/* csrc/*/*)

.PHONY: demo test test-all coverage fuzz soak bench lint docs clean

demo: $(STAMPS)/run
	$(BIN)/eidetic train demo $(ARGS)

# One thread a process: the processes already share the cores among themselves. A file's tests share what they make, so
# they stay in one process, the longest files first (tests/conftest.py). The driver, the promises and all else run in
# processes of their own, so that what one changes in torch (compilers, settings) is not met by the others. What one of the
# many processes has compiled the others load, also where the environment says not to write bytecode.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
test: QUICK := -m "not slow"
test test-all: lint
	$(PYTEST) tests/eidetic_training $(QUICK) $(ARGS)
	$(PYTEST) tests/promises $(QUICK) $(ARGS)
	$(PYTEST) tests --ignore=tests/eidetic_training --ignore=tests/promises $(QUICK) $(ARGS)

COVERED := $(PYTEST) -q --cov --cov-append --cov-report= --cov-fail-under=0
coverage: $(STAMPS)/coverage
	$(BIN)/python -m coverage erase
	$(COVERED) tests/promises $(ARGS)
	$(COVERED) tests --ignore=tests/eidetic_training --ignore=tests/promises $(ARGS)
	$(BIN)/python -m coverage report

FUZZ ?= 20000
fuzz: $(STAMPS)/test
	OMP_NUM_THREADS=1 EIDETIC_FUZZ=$(FUZZ) $(BIN)/python -m pytest -rP -n $(JOBS) tests/fuzz $(ARGS)

# Goes on where it was stopped: build/soak.jsonl says which lives have passed.
SOAK ?= 100000
soak: $(STAMPS)/test
	OMP_NUM_THREADS=1 EIDETIC_SOAK_STEPS=$(SOAK) $(BIN)/python -m pytest -n $(JOBS) tests/promises/test_properties.py
	$(BIN)/python tests/support/soaking.py
	OMP_NUM_THREADS=1 EIDETIC_SOAK=1 $(BIN)/python -m pytest -n $(JOBS) tests/promises/test_atomic.py \
	  tests/ops/test_registered_ops.py tests/eidetic_training/experiments/test_kills.py tests/eidetic_training/test_stopping.py $(ARGS)

# What is timed is tested first: a wrong kernel must not look fast.
bench: $(STAMPS)/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) tests/backends tests/ops tests/layers tests/promises
	$(BIN)/python -m pytest bench --benchmark-only $(ARGS)

lint: $(STAMPS)/test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check --quiet .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMPS)/docs
	$(BIN)/python -m mkdocs build --strict --site-dir build/site

clean:
	rm -rf $(VENV) build dist *.egg-info python/*.egg-info .benchmarks
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f eidetic_kernels/*.so
	find eidetic_kernels python tests bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is `$(PYTHON) -V 2>&1`; Python 3.10 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

# Installed again when the dependencies or compiled sources may have changed; the install is editable, so changes of
# Python code need nothing. CUDA is compiled for the demo where there is a GPU, for the tests where there is nvcc.
$(STAMPS)/run: $(STAMPS)/venv $(COMPILED)
	nvidia-smi >/dev/null 2>&1 || export EIDETIC_CPU_ONLY=1; $(PIP) -e ".[data,plots]"
	touch $@

$(STAMPS)/test: $(STAMPS)/venv $(COMPILED)
	$(PIP) -e ".[test]"
	touch $@ $(STAMPS)/run

$(STAMPS)/coverage: $(STAMPS)/test
	$(PIP) -e ".[coverage]" --no-build-isolation
	touch $@

$(STAMPS)/docs: $(STAMPS)/test
	$(PIP) -e ".[docs]" --no-build-isolation
	touch $@
