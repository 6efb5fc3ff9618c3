# Every target makes .venv first, from requirements.lock, when it is missing or out of date. A machine needs python3
# (3.10 or newer, with venv) and make; `check` needs git too.

PYTHON ?= python3
TESTFLAGS ?=
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ $$n -lt 4 ] && echo $$n || echo 4)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo studies test check sanitize clean venv

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' Makefile | while IFS='|' read -r target text; do \
	  printf 'make %-8s %s\n' "$$target" "$$text"; done

demo: venv  ## train a small model on real text, measure it, write text with it
	$(BIN)/longstream train --data builtin --preset demo --out runs/demo --overwrite
	$(BIN)/longstream evaluate runs/demo
	$(BIN)/longstream generate runs/demo --prompt "The " --max-new-tokens 500 --no-end --seed 0
	@echo "The model, its curves and its settings lie in runs/demo."

studies: venv  ## run every study at small scale, up to 4 hours on 2 cores; run it again to go on where it stopped
	$(BIN)/longstream study all --scale small --out studies/results

test: venv  ## run every test; TESTFLAGS="-m 'not slow' -x" passes flags to pytest, JOBS=1 is one process
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TESTFLAGS)

check: venv  ## formatting, lint and types, through pre-commit
	$(BIN)/pre-commit run --all-files

sanitize:  ## compile and run the C++ kernels under the address, undefined behavior and thread sanitizers
	sh csrc/tests/sanitize.sh "$(CXX)"

clean:  ## remove .venv, caches and build artifacts; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) tools/install.py
