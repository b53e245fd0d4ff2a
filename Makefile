# Every target sets up what it needs. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PY := .venv/bin/python
BIN := .venv/bin
STAMP := .venv/.stamp

.PHONY: help venv services peers check test up demo bench image screenshots format lock clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv:  ## Make the virtual environment with the pinned dependencies
	@sh deploy/local/bootstrap.sh venv

services: venv
	@sh deploy/local/bootstrap.sh services

peers: services
	@sh deploy/local/bootstrap.sh peers

check: venv  ## The fast gate: format, lint, types, import contracts, unit tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(PY) -m pytest -q tests/unit tests/architecture

test: check peers  ## Everything: the gate, then real RabbitMQ, PostgreSQL and peers
	@sh deploy/local/tests.sh

up: services  ## Run the one-machine fleet until interrupted
	@$(PY) -m deploy.local.fleet up

demo: services  ## Show the main job on real messages and real peers; checks what it shows
	@$(PY) -m deploy.local.demo

bench: services  ## Measure speed, CPU and memory
	@$(PY) -m bench

image:  ## Build the container image (IMAGE=, BASE=, BUILDER=; LOCAL_BASE=1 where no registry can be reached)
	@sh deploy/image/build.sh $(if $(LOCAL_BASE),--local-base)

screenshots: services  ## Take the pictures of the panel in docs/images (needs Chromium)
	@$(PY) -m deploy.local.screenshots

format: venv  ## Put the code in form
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: venv  ## Pin the newest versions of the dependencies (needs `uv` on the PATH)
	@uv pip compile --universal --generate-hashes --no-header --no-annotate --upgrade \
		--group dev --extra traces pyproject.toml -o requirements.lock
	@uv pip compile --universal --generate-hashes --no-header --no-annotate -c requirements.lock \
		--extra traces pyproject.toml -o deploy/image/requirements.lock
	@echo hatchling | uv pip compile --universal --generate-hashes --no-header --no-annotate -c requirements.lock \
		- -o deploy/image/build.lock

clean:  ## Remove the virtual environment and all data of the one-machine fleet
	@rm -rf .venv .run .mypy_cache .ruff_cache .pytest_cache .hypothesis
