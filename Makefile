# Two commands matter: `make serve` (a running server) and `make test` (everything that proves it).
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
BOOT := $(PYTHON) deploy/bootstrap.py
# Slow-but-whole test run; PYTEST narrows it: make test PYTEST="tests/inferno -k config"
PYTEST ?= tests

.PHONY: serve test env lint unit soak sanitize fuzz-gguf fuzz-guards fuzz-tokens hostile exact ci-deps lock clean help llama-wheel

help:
	@echo "make serve     a running server on http://127.0.0.1:8080 with a real model and a demo key"
	@echo "make test      environment, linters, all tests, native tests under sanitizers"
	@echo "make lint      ruff and mypy"
	@echo "make unit      tests without real processes"
	@echo "make sanitize  native tests under AddressSanitizer and UBSan"
	@echo "make fuzz-gguf SECONDS=60   the model verifier against the reference parser (needs clang)"
	@echo "make fuzz-guards SECONDS=60 the scanner and the redactor against their twins (needs clang)"
	@echo "make fuzz-tokens COUNT=1000000   mutated session tokens; none may be accepted"
	@echo "make hostile   SECONDS=600   random hostile requests against a running server"
	@echo "make soak      MINUTES=30   mixed load with kills: nothing may be lost, stuck or growing (build/soak)"
	@echo "make exact     RUNS=100   parallel clients over 1 and 4 workers: exactly the allowed number passes"
	@echo "make ci-deps   packages that only CI needs (root, apt)"
	@echo "make lock      refresh deploy/requirements.lock"

serve:
	@$(BOOT) serve

env:
	@$(BOOT) env
	@$(BOOT) model
	@$(BOOT) vocabs

test: env lint
	$(PY) -m pytest $(PYTEST)
	$(MAKE) sanitize

unit: env
	$(PY) -m pytest -m "not e2e and not slow" $(PYTEST)

lint: env
	$(PY) -m ruff check .
	$(PY) -m mypy

sanitize: env
	$(PY) deploy/sanitize.py

fuzz-gguf: env
	$(PY) tests/fuzz/fuzz_gguf.py $(or $(SECONDS),60)

fuzz-guards: env
	$(PY) tests/fuzz/fuzz_guards.py $(or $(SECONDS),60)

fuzz-tokens: env
	INFERNO_FUZZ_TOKENS=$(or $(COUNT),1000000) $(PY) -m pytest -q tests/inferno/security/test_sessions.py -k jwt_12

hostile: env
	INFERNO_TEST_HOSTILE_SECONDS=$(or $(SECONDS),600) $(PY) -m pytest -q tests/end_to_end/test_hostile_requests.py

exact: env
	INFERNO_TEST_EXACT_RUNS=$(or $(RUNS),100) $(PY) -m pytest -q tests/end_to_end/test_limits.py -k admitted_exactly

soak: env
	$(PY) -m tests.soak.soak $(or $(MINUTES),30)

llama-wheel:
	INFERNO_LLAMA_PORTABLE=1 $(BOOT) llama-wheel
	mkdir -p wheels && cp "$$(ls -t $${INFERNO_CACHE:-$$HOME/.cache/inferno}/wheels/*-portable-*/*.whl | head -1)" wheels/

ci-deps:
	deploy/ci-deps.sh

lock:
	uv pip compile --quiet --all-extras --generate-hashes --no-emit-index-url --no-emit-package llama-cpp-python \
	    --no-header --universal --python-version 3.11 -o deploy/requirements.lock pyproject.toml deploy/requirements.in
	uv pip compile --quiet --extra postgres --extra redis --extra otel --generate-hashes --no-emit-index-url \
	    --no-emit-package llama-cpp-python --no-header --universal --python-version 3.11 \
	    --upgrade-package cryptography -o deploy/requirements-runtime.lock pyproject.toml deploy/requirements.in

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find native -name '*.so' -delete
