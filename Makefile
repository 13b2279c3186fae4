# `make` or `make help` lists what can be done. Everything lives in .venv, made on first use.

SHELL         := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS     += --no-print-directory

VENV    := .venv
BIN     := $(VENV)/bin
PY      := $(BIN)/python
# The first of these that is 3.11 or newer makes the environment.
PYTHON  ?= python3 python3.14 python3.13 python3.12 python3.11 python
DEV     := $(VENV)/.dev-stamp
PIP     := $(PY) -m pip install --quiet --disable-pip-version-check
COMPILE := $(PY) -m compileall -q clients/python/agenthive server plugins

PROTOS   := $(shell find protos -name '*.proto')
SERVICES := $(filter %_service.proto,$(PROTOS))
PROTOC    = $(PY) -m grpc_tools.protoc -I protos $(foreach p,mypy mypy_grpc,--plugin=protoc-gen-$(p)=$(BIN)/protoc-gen-$(p))
CLIENT   := clients/python
RELEASED := tests/protos/golden/released.binpb

.PHONY: help setup demo run test check lint type gen gen-check proto-check golden bench soak clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(DEV) ## Make .venv with everything for development

# Agents of the examples run ruff and pytest: these two need the development tools as well.
demo: $(DEV) ## See the main job in one command: server, agents, real tasks, live events
	@$(PY) clients/python/examples/demo.py $(ARGS)

run: $(DEV) ## Serve on 127.0.0.1:50051 with SQLite and a small fleet of local agents
	@$(BIN)/agenthived serve --config clients/python/examples/fleet.toml --data-dir .agenthive $(ARGS)

test: $(DEV) ## Run the tests; ARGS goes to pytest (make test ARGS="-k lease")
	@$(PY) -m pytest -q -n $(or $(WORKERS),2) $(ARGS)

check: lint type gen-check proto-check ## Check everything but the tests

lint: $(DEV) ## Style, format and import rules
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports --no-logo

type: $(DEV) ## Types, strictly
	@$(BIN)/mypy

# Into a folder of its own first: a generator that fails leaves the committed stubs alone.
GENERATE = $(if $(PROTOS),$(PROTOC) --python_out="$$out" --mypy_out=quiet:"$$out" $(PROTOS),true) && \
	$(if $(SERVICES),$(PROTOC) --grpc_python_out="$$out" --mypy_grpc_out=quiet:"$$out" $(SERVICES),true)
COMPILED = server/agenthive_server/storage/compiled.py
STUBS    = find agenthive -name '*_pb2*.py*' ! -path '*/__pycache__/*'

gen: $(DEV) ## Regenerate the Python stubs in clients/python, and the texts of SQL statements
	@$(PY) -m agenthive_server.storage.building >$(COMPILED).new && mv $(COMPILED).new $(COMPILED)
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(GENERATE) && cp -R "$$out/." $(CLIENT)/ && \
	cd $(CLIENT) && for stub in $$($(STUBS)); do test -e "$$out/$$stub" || rm "$$stub"; done

gen-check: $(DEV) ## Fail when what is generated and committed differs from its source
	@$(PY) -m agenthive_server.storage.building | cmp -s - $(COMPILED) || { echo "Run 'make gen' and commit the result." >&2; exit 1; }
	@work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && out="$$work/expected" && mkdir "$$out" "$$work/committed" && \
	$(GENERATE) && (cd $(CLIENT) && for stub in $$($(STUBS)); do \
		mkdir -p "$$work/committed/$${stub%/*}" && cp "$$stub" "$$work/committed/$$stub"; done) && \
	cd "$$work" && { diff -r -q committed expected || { echo "Run 'make gen' and commit the result." >&2; exit 1; }; }

proto-check: $(DEV) ## Lint the protos; fail on a change that breaks clients of the last release
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@! test -e $(RELEASED) || $(BIN)/buf breaking --against $(RELEASED)

golden: $(DEV) ## Rewrite the golden files; review the diff
	@$(PY) -m pytest -q -m golden --rewrite-golden $(ARGS)

bench: $(DEV) ## Measure against the budgets, side by side in one run
	@$(PY) -m tests.bench.run $(ARGS)

soak: $(DEV) ## Crash and simulate for long: make soak SEED=1 ROUNDS=1000
	@AGENTHIVE_SOAK_SEED=$(or $(SEED),1) AGENTHIVE_SOAK_ROUNDS=$(or $(ROUNDS),1000) \
		$(PY) -m pytest -q -m "crash or simulation" --timeout 0 $(ARGS)

clean: ## Remove caches and builds; .venv and .agenthive stay
	@rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find clients server plugins tests -name __pycache__ -prune -exec rm -rf {} +

# A changed pyproject.toml installs again. Dependencies are compiled by pip, our own code here: the first start is fast.
$(DEV): pyproject.toml $(PY)
	@echo "Installing the server and the development tools into $(VENV) ..."
	@$(PIP) --editable '.[server,auth,postgres,redis,dev]'
	@$(COMPILE)
	@touch $@

$(PY):
	@for python in $(PYTHON); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		exec "$$python" .ci/make_venv.py $(VENV); \
	done; \
	echo "No Python 3.11 or newer found. Name one: make setup PYTHON=/path/to/python3" >&2; exit 1
