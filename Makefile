.DEFAULT_GOAL := help
.PHONY: help run test lint bench soak specs lock
BIN := .venv/bin
# ARGS go to the command behind a target: make run ARGS="--port 9000", make test ARGS="tests/domain -x"
ARGS ?=
# What the package in .venv is built from, beside what it finds where it is.
BUILD := pyproject.toml hatch_build.py server/fanout.c .ci/venv
# Compiled modules are kept wherever this is started from: what is imported again and again is not compiled again.
unexport PYTHONDONTWRITEBYTECODE

help: ## what can be typed here
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

run: .venv/.run-stamp ## the demo on http://127.0.0.1:8000
	@exec $(BIN)/fixnado demo $(ARGS)

test: .venv/.dev-stamp ## all tests but the long experiments
	@.ci/ensure-system && $(BIN)/pytest $(ARGS) && cd clients/javascript && node --test

lint: .venv/.dev-stamp ## style, types, layers, and whether the specifications are fresh
	@.ci/lint

bench: .venv/.dev-stamp ## measure this server and its yardsticks: make bench ARGS="p1 p5 --quick"
	@.ci/ensure-system && $(BIN)/fixnado bench $(ARGS)

soak: .venv/.dev-stamp ## the long experiments with failures
	@.ci/ensure-system && $(BIN)/pytest -m soak $(ARGS)

specs: .venv/.dev-stamp ## write openapi/ and asyncapi/ from the catalogue
	@$(BIN)/python -m server specs

lock: .venv/.dev-stamp ## resolve the dependencies anew and pin them with hashes
	@.ci/lock $(ARGS)

.venv/.run-stamp: requirements.lock $(BUILD)
	@.ci/venv $< $@

.venv/.dev-stamp: requirements-dev.lock requirements.lock $(BUILD)
	@.ci/venv $< $@ && touch .venv/.run-stamp
