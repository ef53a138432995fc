# Every target sets up what is not there yet, so each works first on a fresh clone. Needs Python 3.11 to 3.13.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Ray and the protoc plugins are looked up on PATH, so the environment's own programs come first.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTHON ?= $(shell command -v python3.11 || command -v python3)
STAMP := .venv/.installed
SOURCES := $(wildcard cluster trainer serving tests scripts benchmarks examples)
ARGS ?=
PEERS := .bench-peers/.installed
BENCH ?= $(basename $(notdir $(shell grep -l __main__ benchmarks/*.py)))

.PHONY: setup quickstart check check-style check-types check-imports check-generated test chaos bench protos docs format help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## the environment in .venv, installed anew only when pyproject.toml changes
	@echo "environment ok"

# Talk goes to stderr: `make quickstart ARGS=--json` keeps stdout for the document.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "athanor needs Python 3.11, 3.12 or 3.13, and there is no python3 on PATH" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("athanor needs Python 3.11, 3.12 or 3.13; $(PYTHON) is " + sys.version.split()[0] + ". Name another one with make PYTHON=...")'
	@echo "installing into .venv (torch, Ray, DeepSpeed: some minutes the first time) ..." >&2
	@started=$$SECONDS; \
	.venv/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv; \
	.venv/bin/python -m pip install -qq --editable ".[dev]" >&2; \
	touch $@; \
	echo "installed in $$((SECONDS - started)) s" >&2

quickstart: $(STAMP) ## a teacher, a student, a report and a served answer on this machine (ARGS=--json for one document)
	@athanor quickstart $(ARGS)

check: check-style check-types check-imports check-generated ## all that can be said without running: style, types, imports, generated files

check-style: $(STAMP)
	@ruff check --quiet $(SOURCES)
	@ruff format --check --quiet $(SOURCES) || { ruff format --check $(SOURCES) | head -50; echo "mend with: make format" >&2; exit 1; }
	@echo "style ok"

check-types: $(STAMP)
	@mypy --no-error-summary cluster trainer serving scripts benchmarks
	@echo "types ok"

check-imports: $(STAMP)
	@said=$$(lint-imports --no-logo 2>&1) || { echo "$$said" >&2; exit 1; }
	@echo "imports ok"

check-generated: $(STAMP)
	@python scripts/generate_protos.py --check
	@python scripts/generate_docs.py --check
	@python scripts/check_protos.py

# Units share the cores; the rest has processes of its own, and the machine to itself. 5 says that ARGS chose none of them.
test: $(STAMP) ## unit and integration tests (ARGS="-k name" to choose)
	@units=0; OMP_NUM_THREADS=1 pytest tests/unit --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS) || units=$$?; \
	(( units == 0 || units == 5 )) || exit $$units; \
	others=0; pytest tests/integration $(ARGS) || others=$$?; \
	(( others == 5 && units == 0 )) || exit $$others

chaos: $(STAMP) ## tests that kill things on purpose
	@if compgen -G 'tests/chaos/test_*.py' >/dev/null; then pytest tests/chaos $(ARGS); \
	else echo "no chaos suite yet: nothing was run"; fi

bench: $(STAMP) $(PEERS) ## every measurement under benchmarks/ (BENCH=distill_step for one, ARGS="--json --save" for each)
	@for name in $(BENCH); do echo "== $$name" >&2; python "benchmarks/$$name.py" $(ARGS); done

# What others offer, apart from .venv, so that no version of the product's own depends on it; torch is not installed again.
$(PEERS): benchmarks/peers.txt $(STAMP)
	@rm -rf .bench-peers
	@.venv/bin/python -m pip install -qq --no-deps --target .bench-peers -r benchmarks/peers.txt >&2
	@touch $@

protos: $(STAMP) ## Python from protos/athanor/v1/*.proto, written beside them
	@python scripts/generate_protos.py

docs: $(STAMP) ## docs/job-spec.md and the lifecycle diagram, from the code
	@python scripts/generate_docs.py

format: $(STAMP) ## ruff's fixes and format
	@ruff check --fix --quiet $(SOURCES)
	@ruff format --quiet $(SOURCES)
