# One line per thing a person does. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
LOCAL := schemas libs/eventlog libs/telemetry libs/service services/ratelimit services/gateway services/inventory services/order-writer tools/payment_simulator tools/devstack tools/replay tools/contracts clients/python
RUN_TESTS = $(BIN)/pytest -q --numprocesses 2 --dist loadfile \
  $(or $(TESTS),tests --ignore tests/chaos --ignore tests/planted --ignore tests/http $(if $(AFTER_UNIT),$(UNIT:%=--ignore %)))
UNIT := tests/unit tests/property

.DEFAULT_GOAL := help
.PHONY: help setup lock demo up down status token trace unit coverage test test-repeat test-faults test-http check format sim chaos chaos-edge bench-loading bench-snapshots bench-writer bench-read-side clean

help: ## This list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## Make .venv from requirements.lock (hashes checked)

.venv/ready: requirements.lock $(LOCAL:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stampede needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# uv is in the lock too: pip installs it alone, hash-checked, and uv installs the rest ten times faster.
	@awk '/^uv==/{p=1} p{print} p&&!/\\$$/{exit}' requirements.lock > .venv/uv.lock
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock; then \
	  $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; fi \
	  || { echo "Could not install the packages of requirements.lock: is a package index reachable (pip config, proxy)?"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index $(LOCAL:%=-e ./%)
	@touch $@

demo: setup ## A real sale on real Kafka, Postgres and Redis, and its proof (DEMO_EXIT=1: stop by itself)
	@$(BIN)/devstack demo

up: setup ## Start everything and return when it is healthy
	@$(BIN)/devstack up --detach

down: setup ## Stop what `make up` started
	@$(BIN)/devstack down

status: setup ## What runs, where
	@$(BIN)/devstack status

token: setup ## A token for a stack started with STAMPEDE_AUTH=jwt: USER=ann ROLE=admin
	@$(BIN)/devstack token --user "$(USER)" --role "$(ROLE)"

trace: setup ## One purchase as a waterfall: make trace ID=<purchase_id>
	@$(BIN)/devstack trace --id "$(ID)"

unit: setup ## The tests that need nothing but Python: no broker, no socket, no other process (seconds)
	@$(BIN)/pytest -q --numprocesses 2 --dist loadfile -p tests.support.one_process $(UNIT)

coverage: setup ## Which functions no unit test enters; TESTS="tests/contract tests/e2e" adds those (HTML: .coverage/html)
	@rm -rf .coverage && mkdir .coverage
	@$(BIN)/coverage run -m pytest -q -p no:xdist $(UNIT) $(TESTS); ended=$$?; $(BIN)/coverage combine --quiet \
	  && $(BIN)/coverage html --quiet && $(BIN)/coverage json --quiet && $(BIN)/python tools/coverage_gaps.py .coverage/report.json; exit $$ended

test: setup ## The tests, on real Kafka, Postgres and Redis (some minutes): TESTS=tests/unit for some of them
	@$(RUN_TESTS)

test-repeat: setup ## The same N times, odd rounds beside busy cores; failed rounds are kept: N=5 BUSY=2 TESTS=tests/e2e
	@$(BIN)/python tools/repeat_tests.py --rounds "$(or $(N),5)" --busy "$(or $(BUSY),2)" -- $(RUN_TESTS)

test-faults: setup ## 100,000 simulated histories, minutes of chaos, and bugs planted on the real stack
	@$(BIN)/python -m tests.simulation --histories 100000 --seed 1 --processes 2
	@$(BIN)/pytest -q tests/chaos tests/planted

test-http: setup ## HTTP at length: thousands of requests by its descriptions, against them, and as raw bytes
	@$(BIN)/pytest -q tests/http

check: setup ## Format, lint, types, imports, contract files, manifests, size: what CI gates on
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet . && echo "ruff: clean"
	@$(BIN)/mypy $(LOCAL) tests
	@$(BIN)/lint-imports
	@$(BIN)/python -m contracts check
	@$(BIN)/pytest -q tests/contract
	@$(BIN)/python tools/size.py

format: setup ## Let ruff format and mend what it can
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --fix --quiet .

sim: setup ## Try to break the inventory protocol: HISTORIES=100000 SEED=1
	@$(BIN)/python -m tests.simulation --histories $(or $(HISTORIES),1000000) --seed $(or $(SEED),1) --processes 2

chaos: setup ## Break the real stack while it sells, and check everything: MINUTES=10 SEED=1
	@$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

chaos-edge: setup ## The same for gateways, limits and Redis alone, at the edge of stock: MINUTES=3 SEED=1
	@$(BIN)/python -m tests.chaos.edge --minutes $(or $(MINUTES),3) $(if $(SEED),--seed $(SEED))

bench-loading: setup ## How fast 1,000,000 reservations load, and what a snapshot costs (RESERVATIONS=n)
	@$(BIN)/python -m bench.loading --reservations $(or $(RESERVATIONS),1000000)

bench-snapshots: setup ## How much room a thousand snapshots take, and that they still load (SNAPSHOTS=n)
	@$(BIN)/python -m bench.snapshots --snapshots $(or $(SNAPSHOTS),1000)

bench-writer: setup ## What one order-writer persists, beside a bare insert loop (ORDERS=60000 ROUNDS=3)
	@$(BIN)/python -m bench.writer --keep --orders $(or $(ORDERS),60000) --rounds $(or $(ROUNDS),3)

bench-read-side: setup ## How long the lists of orders take among 5,000,000 (ROWS=n)
	@$(BIN)/python -m bench.read_side --keep --rows $(or $(ROWS),5000000)

clean: ## Stop the stack and remove its data
	@if test -x $(BIN)/devstack; then $(BIN)/devstack clean; else rm -rf .stack; fi

lock: setup ## Renew requirements.lock from every pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  $(foreach p,schemas eventlog telemetry service gateway inventory order-writer ratelimit payment-simulator devstack replay contracts client,--no-emit-package stampede-$(p)) \
	  pyproject.toml -o requirements.lock
