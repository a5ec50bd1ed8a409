# Two commands do all: `make run` aligns the embedded toon model, `make test` checks the project.
PYTHON ?= python3
PY := .venv/bin/python
# On a machine without NVIDIA GPU, a CPU build of torch comes first, so that nothing pulls CUDA wheels.
# Where PyPI is asked directly, name the CPU index: make run TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH ?= $(if $(wildcard /dev/nvidia0),torch>=2.10,torch==2.13.0)
TORCH_ARGS ?=
# Test files run side by side, one thread each: much of their time is waiting for processes to start.
WORKERS ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: run monitor test test-slow test-browser lint docs clean

run: .venv/installed
	$(PY) -m deploy.cli run --verify

# Prometheus, alerts and dashboards for a run, in a second terminal: make monitor RUN=runs/NAME
RUN ?= runs/toon
monitor: .venv/installed
	$(PY) -m deploy.cli monitor $(RUN)

test: .venv/installed-dev lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow and not gpu and not browser" $(WORKERS)

test-slow: .venv/installed-dev
	$(PY) -m pytest -m slow

# Needs a chromium on the PATH (Debian: apt-get install chromium); without one every test says so and is skipped.
test-browser: .venv/installed-dev
	$(PY) -m pytest -m browser -rs

docs: .venv/installed-dev
	$(PY) -m mkdocs build --quiet

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/lint-imports

.venv/installed: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH_ARGS) "$(TORCH)" numpy
	$(PY) -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build runs
