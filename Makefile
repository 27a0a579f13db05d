# Everything runs in a virtual environment of this checkout, which the first target to need it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(wildcard shmcast/_core/*.hpp shmcast/_core/*.cpp)
NATIVE_TEST := tests/native/ring_test.cpp
SANITIZERS := thread address,undefined

.PHONY: help demo test lint sanitize bench clean
.DEFAULT_GOAL := help

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST)

# torch is pinned by the constraints: an open range would fetch gigabytes of CUDA packages.
$(VENV)/ready: pyproject.toml constraints.txt CMakeLists.txt $(CORE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/ready ## generate text with a tensor-parallel model, driven through shmcast
	$(BIN)/python examples/tp_generate.py

test: $(VENV)/ready ## run the tests
	$(BIN)/python -m pytest

lint: $(VENV)/ready ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CORE) $(NATIVE_TEST)
	$(BIN)/mypy

sanitize: $(SANITIZERS:%=build/ring_test-%) ## run the ring as threads under sanitizers
	for test in $^; do TSAN_OPTIONS=halt_on_error=1 ./$$test || exit 1; done

build/ring_test-%: $(NATIVE_TEST) $(CORE)
	mkdir -p build
	$(CXX) -std=c++20 -Wall -Wextra -Werror -O1 -g -fsanitize=$* -fno-sanitize-recover=all \
		-Ishmcast/_core $(NATIVE_TEST) -o $@ -pthread

bench: $(VENV)/ready ## measure latency against the peers (about a quarter of an hour)
	$(BIN)/python bench/latency.py --output bench/results/latency.json

clean: ## remove the environment and everything built
	rm -rf $(VENV) build
