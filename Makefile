# One line per thing a person does. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
LOCAL := schemas libs/eventlog libs/telemetry services/ratelimit services/gateway services/inventory services/order-writer tools/devstack

.DEFAULT_GOAL := help
.PHONY: help setup lock

help: ## This list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## Make .venv from requirements.lock (hashes checked)

.venv/ready: requirements.lock $(LOCAL:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stampede needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# uv is in the lock too: pip installs it alone, hash-checked, and uv installs the rest ten times faster.
	@awk '/^uv==/{p=1} p{print} p&&!/\\$$/{exit}' requirements.lock > .venv/uv.lock
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock; then \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; fi \
	  || { echo "Could not install the packages of requirements.lock: is a package index reachable (pip config, proxy)?"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index $(LOCAL:%=-e ./%)
	@touch $@

lock: setup ## Renew requirements.lock from every pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  $(foreach p,schemas eventlog telemetry gateway inventory order-writer ratelimit devstack,--no-emit-package stampede-$(p)) \
	  pyproject.toml -o requirements.lock
