# `make demo` and `make test` do everything on a fresh machine with Python >= 3.11 (with venv), make and
# a C++ compiler. Each step is done once and again only after what it depends on has changed.
#
#   make demo           train on handwritten digits, save, export, convert, compare
#   make test           lint, the C++ tests, the Python tests
#   make bench          time and memory against Keras and others (ARGS="..." is handed on)
#   make bench-mobile   .tflite files against Keras' export; writes docs/mobile.md
#   make lint           ruff and clang-format; `make format` applies them
#   make op             compile the op for the TensorFlow in .venv
#   make test-cpp       the C++ tests of the core
#   make sanitize       the same under AddressSanitizer and UBSan
#   make sanitize-threads   the same under ThreadSanitizer
#   make bazel          build with Bazel and run the C++ tests with it
#   make test-aarch64   the C++ tests for aarch64, under emulation
#   make test-mobile    set up the runtimes of phones and browsers and run files in them
#   make build-cuda     install NVRTC and compile the op with CUDA kernels
#   make build-tflite   compile the custom op for TensorFlow Lite and LiteRT
#   make test-tflite-op the custom op's C++, as shipped, under ASan and UBSan, under TSan
#   make test-cuda      the CUDA kernels and their launches, run by the CPU
#   make gpu-harness    the library that benchmarks/gpu takes to a machine with a GPU
#   make test-slow      every layer in TFLite's number formats and on two replicas; the examples
#   make test-backends  install JAX and PyTorch and run every layer on them
#   make test-peers     make tensorflow-addons' own environment and compare with it
#   make test-torch     install torch and run the tests that compare with it
#   make test-packaging build and install sdist and wheel (uses the network)
#   make matrix         write the last tests' outcome into README.md's support matrix
#   make dist           sdist and wheel
#   make clean          remove what was built; `make distclean` removes .venv as well

PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?= -n 2

BIN := $(VENV)/bin
OP := keras_norms/_native/libkeras_norms.so
TFLITE_OP := keras_norms/_native/libkeras_norms_tflite.so
SOURCES := $(wildcard custom_ops/*/*.cc custom_ops/*/*.cu custom_ops/*/*.h)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TF_CPP_MIN_LOG_LEVEL ?= 2
.DELETE_ON_ERROR:
.PHONY: demo test pytest matrix bench bench-mobile lint format op build-cuda build-tflite test-cpp sanitize \
        sanitize-threads test-tflite-op bazel test-aarch64 test-mobile test-cuda test-slow test-backends test-peers test-torch \
        test-packaging gpu-harness dist clean distclean

demo: $(OP)
	$(BIN)/python examples/digits.py $(ARGS)

test: lint test-cpp pytest

# Without the op its tests would be skipped, so here its absence is a failure. The support matrix
# begins anew with a run of all tests; what runs later is added.
pytest: $(OP) $(TFLITE_OP)
	$(if $(ARGS),,rm -f build/support.json)
	KERAS_NORMS_REQUIRE_FUSED=1 KERAS_NORMS_REQUIRE_TFLITE_OP=1 $(BIN)/python -m pytest $(PYTEST_FLAGS) $(ARGS)

matrix: $(OP)
	$(BIN)/python tests/matrix.py $(ARGS)

bench: $(OP)
	$(BIN)/python -m benchmarks $(ARGS)

bench-mobile: $(OP) $(TFLITE_OP)
	$(BIN)/python -m benchmarks.mobile $(ARGS)

# The environment -------------------------------------------------------------------------------

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "Python 3.11, 3.12 or 3.13 is needed. Received: $$($(PYTHON) --version 2>&1)." \
	       "Name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "Python's venv is missing. Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.requirements: requirements.txt | $(VENV)/.made
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.package: setup.py pyproject.toml $(VENV)/.requirements
	KERAS_NORMS_BUILD=0 $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

op: $(OP)

# What compiles; a change of it compiles anew.
COMPILING := $(patsubst %,keras_norms/%.py,build build_tflite compiling cuda library)

$(OP): $(SOURCES) $(COMPILING) $(VENV)/.package
	$(BIN)/keras-norms build --output $@
	@touch $@

$(VENV)/.cuda: requirements-cuda.txt $(VENV)/.requirements
	$(BIN)/python -m pip install --quiet -r requirements-cuda.txt
	@touch $@

build-tflite: $(TFLITE_OP)

$(TFLITE_OP): $(wildcard custom_ops/core/* custom_ops/tflite/*) $(COMPILING) $(VENV)/.package
	$(BIN)/keras-norms build --tflite --output $@
	@touch $@

build-cuda: $(VENV)/.cuda $(VENV)/.package
	$(BIN)/keras-norms build --cuda --output $(OP)
	@touch $(OP)

# Lint ------------------------------------------------------------------------------------------

CPP_FILES = $(wildcard custom_ops/*/*.cc custom_ops/*/*.cu custom_ops/*/*.h tests/c*/*.cc tests/c*/*.h \
                       tests/tflite/*.cc tests/tflite/*.h examples/*/*.cc examples/*/*.h benchmarks/gpu/*.cc \
                       examples/android/custom_op/src/main/cpp/*.cc)

lint: $(VENV)/.requirements
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: $(VENV)/.requirements
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# The C++ tests: each tests/cpp/*.cc is a program, linked with the core alone --------------------

MACHINE := $(shell uname -m)
CORE := $(wildcard custom_ops/core/*.cc)
ifneq ($(MACHINE),x86_64)
CORE := $(filter-out %_avx2.cc %_avx512.cc,$(CORE))
endif
TESTS_CPP := $(wildcard tests/cpp/*.cc)
TFLITE := $(wildcard custom_ops/tflite/*.cc)
# As in keras_norms/compiling.py.
SIMD_kernels_avx2 := -march=x86-64-v3
SIMD_kernels_avx512 := -march=x86-64-v4
FLAGS_release := -O3 -DNDEBUG
FLAGS_sanitize := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
FLAGS_threads := -O1 -g -fno-omit-frame-pointer -fsanitize=thread
# GCC 12 warns of its own intrinsics, and of an ABI that changed in GCC 4.6.
CORE_FLAGS := -std=c++17 -Wall -Wextra -Wno-maybe-uninitialized -Wno-psabi -fno-math-errno -fno-trapping-math -pthread -I.

define variant
$(1)_OBJECTS := $$(CORE:%.cc=build/cpp/$(1)/%.o)
$(1)_PROGRAMS := $$(TESTS_CPP:%.cc=build/cpp/$(1)/%)
-include $$(patsubst %.cc,build/cpp/$(1)/%.d,$$(CORE) $$(TESTS_CPP) $$(TFLITE) tests/tflite/op_test.cc)

build/cpp/$(1)/%.o: %.cc Makefile
	@mkdir -p $$(@D)
	@echo "$(CXX) [$(1)] $$<"
	@$(CXX) $$(CORE_FLAGS) $$(FLAGS_$(1)) $$(SIMD_$$(*F)) $(CXXFLAGS) -MMD -MP -c $$< -o $$@

build/cpp/$(1)/tests/%.o: CORE_FLAGS += -UNDEBUG

build/cpp/$(1)/tests/cpp/%: build/cpp/$(1)/tests/cpp/%.o $$($(1)_OBJECTS)
	@$(CXX) $$(FLAGS_$(1)) -pthread $$^ -o $$@

build/cpp/$(1)/tests/tflite/op_test: build/cpp/$(1)/tests/tflite/op_test.o $$(TFLITE:%.cc=build/cpp/$(1)/%.o) \
                                     $$($(1)_OBJECTS)
	@$(CXX) $$(FLAGS_$(1)) -pthread $$^ -ldl -o $$@

.PHONY: run-$(1) run-tflite-$(1)
run-tflite-$(1): build/cpp/$(1)/tests/tflite/op_test
	@echo $$<; $$<

.SECONDARY: $$($(1)_OBJECTS) $$(TESTS_CPP:%.cc=build/cpp/$(1)/%.o)
run-$(1): $$($(1)_PROGRAMS)
	@for program in $$($(1)_PROGRAMS); do echo "$$$$program"; $$$$program || exit 1; done
	@echo "$(1): $$(words $$($(1)_PROGRAMS)) C++ test programs passed"
endef
$(foreach name,release sanitize threads,$(eval $(call variant,$(name))))

test-cpp: run-release
sanitize: run-sanitize
sanitize-threads: run-threads
# The custom op for TFLite, in a host of the tests' own.
test-tflite-op: run-tflite-release run-tflite-sanitize run-tflite-threads

# Beyond the everyday ---------------------------------------------------------------------------

bazel: $(VENV)/.requirements
	KERAS_NORMS_PYTHON=$(abspath $(BIN))/python bazel/run

test-cuda: $(VENV)/.cuda $(VENV)/.package gpu-harness
	CXX="$(CXX)" PYTHON="$(abspath $(BIN))/python" tests/cuda/run
	CXX="$(CXX)" PYTHON="$(abspath $(BIN))/python" tests/cuda/run_harness

# The CUDA kernels as a library of their own, without TensorFlow: what benchmarks/gpu takes along to
# a machine with a GPU. The images are those of the op.
GPU_LIBRARY := build/gpu/libkn_gpu.so
GPU_SOURCES := benchmarks/gpu/library.cc $(patsubst %,custom_ops/cuda/%.cc,plan driver images embedded)
GPU_FLAGS := -std=c++17 -O2 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden -DNDEBUG -pthread -I.
COMMIT = $(shell git describe --always --dirty --exclude '*' 2>/dev/null)

build/gpu/images.bin: $(wildcard custom_ops/cuda/*.cu custom_ops/c*/*.h) $(COMPILING) \
                      benchmarks/gpu/images.py $(VENV)/.cuda
	$(BIN)/python benchmarks/gpu/images.py $@

$(GPU_LIBRARY): $(GPU_SOURCES) $(wildcard custom_ops/c*/*.h) build/gpu/images.bin
	$(CXX) $(GPU_FLAGS) -DKERAS_NORMS_CUDA_IMAGES='"$(abspath build/gpu/images.bin)"' \
	  -DKERAS_NORMS_COMMIT='"$(COMMIT)"' -shared -static-libgcc -static-libstdc++ \
	  -Wl,--no-undefined -Wl,-s $(GPU_SOURCES) -ldl -o $@

gpu-harness: $(GPU_LIBRARY)
	@echo "$(GPU_LIBRARY): $$(($$(stat -c %s $(GPU_LIBRARY)) / 1000)) KB"

test-aarch64: $(VENV)/.made
	qemu="$$($(BIN)/python -m tests.mobile.qemu)" && QEMU="$$qemu" tests/cpp/run_aarch64.sh

# The runtimes that cannot be had are named, here and at the end of the tests, which skip them.
test-mobile: $(OP)
	$(BIN)/python -m tests.mobile
	$(BIN)/python -m pytest -m mobile $(ARGS)

test-slow: $(OP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m slow $(ARGS)

test-backends: $(OP)
	$(BIN)/python -m pip install --quiet -r requirements-backends.txt
	$(BIN)/python -m pytest -m backends $(ARGS)

test-peers: $(OP)
	tests/peers/run $(BIN)/python -m pytest -m peers $(ARGS)

test-torch: $(OP)
	$(BIN)/python -m pip install --quiet -r requirements-torch.txt
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -k torch $(ARGS)

test-packaging: $(OP)
	$(BIN)/python -m pytest -m packaging $(ARGS)

dist: $(OP)
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf build dist keras_norms/_native bazel-* *.egg-info

distclean: clean
	rm -rf $(VENV)
