# Thin: .ci/setup makes .venv (quick when it is there), the command `cimtwin` does the work.
# ARGS go to the command: make demo ARGS="--duration 60"

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
ARGS ?=
# Two halves of the tests at the same time: most of them wait for processes. ARGS="-n 0" for one after the other.
SIDE_BY_SIDE := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup page demo test test-quick test-timescale check bench clean

help:
	@echo "make demo            the demo city on an embedded database and broker"
	@echo "make page            the page that the service shows, built from web/; all the others see to it, too"
	@echo "make test            every test, on plain PostgreSQL"
	@echo "make test-quick      the tests that need no broker and no database"
	@echo "make test-timescale DATABASE_URL=postgresql://...    every test, on a server with TimescaleDB"
	@echo "make check           format, lint, types"
	@echo "make bench           our rates on this machine; one row: make bench ONLY=single"

setup:
	@.ci/setup

page: setup

demo: setup
	@$(BIN)/cimtwin demo $(ARGS)

test:
	@.ci/setup test
	@env -u CIMTWIN_TEST_DATABASE_URL $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-quick: setup
	@$(BIN)/python -m pytest -m "not system" $(ARGS)

test-timescale:
	@test -n "$(DATABASE_URL)" || { echo "usage: make test-timescale DATABASE_URL=postgresql://..." >&2; exit 2; }
	@.ci/setup test
	@CIMTWIN_TEST_DATABASE_URL="$(DATABASE_URL)" $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

check: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python hatch_build.py check

bench:
	@.ci/setup test
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(ARGS)

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis web/node_modules twin/web
