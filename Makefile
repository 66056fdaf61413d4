# Every target works from a fresh checkout: what it needs is set up first, and that is quick when it is already there.
#
#   make run         a first look: serves on SQLite with a capture server and sends a first message through it
#   make test        everything that ends within 20 minutes, on real servers (installs Debian packages where it may)
#   make test-quick  what needs no server program and no root
#   make soak        the long forms of the tests
#   make bench       speed and memory; figures go to bench/RESULTS.md   (BENCH="--only kept,latency --rounds 3" to choose)
#   make check       ruff, mypy --strict, the direction of imports
#   make docs        the reference pages, printed from the models

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?= -q
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: help setup run programs test test-quick soak bench check format docs lock

help:
	@sed -n 's/^#   //p' Makefile

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml requirements/test.txt tools/setup
	@tools/setup $(VENV)

run: setup
	@exec $(BIN)/posthouse serve --data ./data --first-run

programs:
	@tools/programs tests/debian-packages.txt

test: setup programs
	$(BIN)/pytest $(PYTEST_FLAGS) -m "not soak"

test-quick: setup
	$(BIN)/pytest $(PYTEST_FLAGS) -m "not soak and not servers and not postgres"

soak: setup programs
	$(BIN)/pytest $(PYTEST_FLAGS) -m soak

bench: setup programs
	$(BIN)/python -m bench.relay $(BENCH)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict posthouse tests bench
	$(BIN)/pytest $(PYTEST_FLAGS) tests/test_layering.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python -m posthouse.cli.reference docs/reference

lock: setup
	@tools/lock $(BIN)/python
