# ia_jax. `make` lists the targets. Environments: .venv (everything at run time, newest Python) and .venv-peers
# (ia_jax next to CPU torch, transformers, peft and trl, only for comparisons).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Wheels are installed uncompiled; what is imported once is compiled then, whatever the caller's shell says.
unexport PYTHONDONTWRITEBYTECODE
# Large arrays on huge pages: a training step on the CPU takes 10-15 % less time (docs/benchmark.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
.PHONY: help install demo test lint typecheck test-unit test-peers test-slow format config-docs bench report clean distclean

CONFIG ?= configs/smollm2_demo.py
WORKDIR ?= runs/demo
ARGS ?=
# Asked for exactly: a plain `torch` may bring several GB of CUDA to a machine that has no use for it.
TORCH ?= torch==2.13.0
# PYTHON=/path/to/python (.venv) and PEERS_PYTHON=… (.venv-peers) override the choice of interpreter.
PYTHON ?=
PEERS_PYTHON ?=

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install:  ## both environments, side by side (again only when pyproject.toml changed)
	@$(MAKE) -s -j2 .venv/.installed .venv-peers/.installed

.venv/.installed: pyproject.toml
	@PYTHON='$(PYTHON)' .ci/make-venv .venv "3.13 3.12 3.11" -e '.[dev,audit]'
	@touch $@

.venv-peers/.installed: pyproject.toml
	@PYTHON='$(PEERS_PYTHON)' .ci/make-venv .venv-peers "3.11 3.12 3.13" '$(TORCH)' -e '.[peers,test]'
	@touch $@

demo: .venv/.installed  ## the whole method on SmolLM2-135M: CONFIG=configs/smollm2_demo.py WORKDIR=runs/demo
	.venv/bin/ia-jax run --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

report: .venv/.installed  ## write WORKDIR/report.html again
	.venv/bin/ia-jax report --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: install  ## lint, types, unit tests, comparisons with torch and peft; fails if any of them fails
	@status=0; \
	for check in lint typecheck test-peers test-unit; do \
	    echo "== $$check"; $(MAKE) --no-print-directory $$check || { status=1; failed="$${failed-} $$check"; }; \
	done; \
	if [ $$status -ne 0 ]; then echo "make test: failed:$$failed" >&2; fi; exit $$status

lint: .venv/.installed  ## ruff, rules and layout; floors (who may import whom)
	@.venv/bin/ruff check --output-format=concise .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports --no-cache --no-logo

typecheck: .venv/.installed  ## pyright over ia_jax and configs
	@.venv/bin/basedpyright

test-unit: .venv/.installed  ## unit tests alone: ARGS="-k lora"
	@.venv/bin/python -m pytest --ignore=tests/peers -n 2 --dist loadfile $(ARGS)

test-peers: .venv-peers/.installed  ## the comparisons alone
	@.venv-peers/bin/python -m pytest tests/peers -n 2 --dist loadfile $(ARGS)

test-slow: .venv/.installed  ## what `make test` leaves out because something like it is there (never timed whole)
	@.venv/bin/python -m pytest --ignore=tests/peers -n 2 --dist loadfile -m slow $(ARGS)

format: .venv/.installed  ## ruff's fixes and layout
	@.venv/bin/ruff check --fix-only .
	@.venv/bin/ruff format .

config-docs: .venv/.installed  ## docs/config.md, from the sections' docstrings
	@.venv/bin/ia-jax config reference > docs/config.md

bench: install  ## ours against torch + peft, one table each: ARGS=--json
	.venv/bin/python benchmarks/organisms_vs_peft.py $(ARGS)

clean:  ## caches and builds (not runs/, not the environments)
	rm -rf build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean  ## the environments too
	rm -rf .venv .venv-peers
