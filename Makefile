# Everything a newcomer types. Needs Python >= 3.11, git and make; SETUP=gpu takes the GPU lock.
PYTHON ?= python3
SETUP ?= cpu
JOBS ?= 2
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo test test-all lint types lock clean

setup: .venv/.ready-$(SETUP)

.venv/.ready-$(SETUP): requirements/$(SETUP).txt pyproject.toml
	@echo "Environment in .venv: $$(grep -c '^[a-zA-Z]' requirements/$(SETUP).txt) locked packages at most, 6.5 GB on disk (more with SETUP=gpu), most of it torch and CUDA."
	@echo "It takes half a minute where uv has them in its cache, else as long as their download."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip sync --python $(BIN)/python requirements/$(SETUP).txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@echo "Compiling the kernels of labels and ranking (once)"
	$(BIN)/python -m reid_core.compiled
	rm -f .venv/.ready-*
	touch $@

demo: setup
	$(BIN)/reid demo

test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m "not gpu" --no-loadscope-reorder --durations 25

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell --quiet-level 2 reid_core pipelines tune_spaces tests benchmarks docs README.md CONTRIBUTING.md
	$(BIN)/lint-imports

types: setup
	$(BIN)/pyright

# Resolve again: pinned versions with hashes, for every Python from 3.11 on.
lock: setup
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --extra cpu --extra dev -o requirements/cpu.txt
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --extra gpu --extra dev -o requirements/gpu.txt

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache
