# NS-LLM. `make up` shows the product, `make test` checks it; both set up .venv first.
.POSIX:

VENV = .venv
PYTHON ?=
# Arguments for the installation of torch, such as an index with CPU-only builds.
TORCH_PIP_ARGS ?=
# Any value: end after the demonstration instead of serving on.
ONCE ?=
PEERS ?= 4
BASE_PORT ?= 8700
# Arguments for pytest instead of everything (two processes for what stays inside one, then networks of real peers):
# such as make test TESTS='tests/consensus -x'
TESTS ?=

SETUP = PYTHON='$(PYTHON)' TORCH_PIP_ARGS='$(TORCH_PIP_ARGS)' scripts/setup.sh $(VENV)
BIN = $(VENV)/bin

.PHONY: help up test lint docs doctor bench-setup test-long test-upstream clean setup setup-test

help:
	@echo 'make up [ONCE=1]   four peers, one question, one verified receipt; then serves until Ctrl-C'
	@echo 'make test          style, types, import contract, documents, and every test but the long ones'
	@echo 'make lint          the static half of it'
	@echo 'make docs          write the generated tables of the documents'
	@echo 'make doctor        check this machine'
	@echo 'make bench-setup   build the opponents of the benchmarks, in .venv-bench, .venv-hivemind, .venv-gptcache'
	@echo 'make test-long     scenarios on real processes that take minutes'
	@echo 'make test-upstream  a peer over the real server of llama-cpp-python; builds that first'
	@echo 'make clean         remove what was built; keys, models and networks stay'
	@echo 'TORCH_PIP_ARGS=... chooses the build of torch'

up: setup
	@$(BIN)/nsllm model fetch
	@once='$(ONCE)'; exec $(BIN)/nsllm demo --peers $(PEERS) --base-port $(BASE_PORT) $${once:+--once}

test: setup-test lint
	@$(BIN)/nsllm model fetch
	@if [ -n "$${TESTS:-}" ]; then set -x; exec $(BIN)/python -m pytest $(TESTS); fi; set -x; \
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/process && \
	$(BIN)/python -m pytest tests/process -m 'not long'

lint: setup-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/cog -I docs --check $$(grep -l '\[\[\[cog' *.md docs/*.md)

docs: setup-test
	$(BIN)/cog -I docs -r $$(grep -l '\[\[\[cog' *.md docs/*.md)

doctor: setup
	@$(BIN)/nsllm doctor

bench-setup: setup
	@TORCH_PIP_ARGS='$(TORCH_PIP_ARGS)' benchmarks/setup.sh .venv-bench .venv-hivemind .venv-gptcache $(BIN)/python
	@$(BIN)/nsllm model fetch
	@$(BIN)/python -m benchmarks.material

# Not part of `make test`: minutes of real processes that stand still.
test-long: setup-test
	@$(BIN)/nsllm model fetch
	$(BIN)/python -m pytest tests/process -m long

# Not part of `make test`: llama.cpp is compiled for minutes.
test-upstream: setup-test bench-setup
	@.venv-bench/bin/python -m pip install -q --disable-pip-version-check -r tests/process/llama_server_requirements.txt
	$(BIN)/python -m pytest tests/process/llama_server.py

clean:
	rm -rf $(VENV) .venv-bench .venv-hivemind .venv-gptcache build dist src/nsllm.egg-info tests/solidity/node_modules
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@$(SETUP) run

setup-test:
	@$(SETUP) test
