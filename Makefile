# Two commands do all: `make run` aligns the embedded toon model, `make test` checks the project.
PYTHON ?= python3
PY := .venv/bin/python
# On a machine without NVIDIA GPU, a CPU build of torch comes first, so that nothing pulls CUDA wheels.
# Where PyPI is asked directly, name the CPU index: make run TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
# torch comes without its dependencies, for that index has only some versions of them: the next command installs them.
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
# Every other package has the version that the lock of this Python names. `make update-lock` renews the locks.
VERSION := $(shell $(firstword $(wildcard $(PY)) $(PYTHON)) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
LOCK := requirements/lock-$(VERSION).txt
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --constraint $(LOCK)
# Test files run side by side, one thread each: much of their time is waiting for processes to start.
WORKERS ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: run monitor test test-slow test-browser lint docs update-lock clean

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

.venv/installed: pyproject.toml $(LOCK)
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(INSTALL) --no-deps $(TORCH_ARGS) "$(TORCH)"
	$(INSTALL) --editable ".[deepspeed]"
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) --editable ".[dev]"
	touch $@

# The newest versions that pyproject.toml allows, for every supported Python: uv reads metadata and installs nothing.
update-lock:
	test -x build/uv/bin/python || $(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade uv
	build/uv/bin/python requirements/update_lock.py "$(TORCH)"

clean:
	rm -rf .venv build runs
