SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
PYTHON := .venv/bin/python

.PHONY: help demo lab test lint bench clean setup

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

demo: ## set everything up, then train a small network with `flow run` and execute the quickstart notebook
	@scripts/setup.sh demo
	@scripts/demo.sh

lab: ## set everything up, then open the quickstart notebook in JupyterLab; PORT=… and ARGS=… are passed on
	@scripts/setup.sh lab
	@scripts/lab.sh $(if $(PORT),--port=$(PORT)) $(ARGS)

test: ## set everything up, then run lint and all tests
	@scripts/setup.sh dev system
	@scripts/test.sh

lint: setup ## ruff (rules and format) and mypy
	$(PYTHON) -m ruff check --extend-exclude .cache .
	$(PYTHON) -m ruff format --check --extend-exclude .cache .
	$(PYTHON) -m mypy

bench: setup ## measure Flow beside its peers and print one table
	$(PYTHON) -m tests.benchmarks

setup: ## make .venv with what development needs
	@scripts/setup.sh dev

clean: ## remove everything that the other targets made
	@scripts/clean.sh
