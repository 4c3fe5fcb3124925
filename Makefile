# lmo.cu: `make train` trains a small LLaMA on real text, `make test` runs all quick tests. Both install what
# is missing first (scripts/setup.sh says what). `make help` lists the rest.

MAKEFLAGS += --no-builtin-rules
CXX   := $(if $(filter default,$(origin CXX)),g++,$(CXX))
BUILD ?= build
JOBS  ?= $(shell nproc 2>/dev/null || echo 2)
Q     := $(if $(V),,@)

# ---- what this machine has ------------------------------------------------------------------------
has_header = $(shell printf '\#include <$(1)>\n' | $(CXX) -E -x c++ - >/dev/null 2>&1 && echo yes)
OPENBLAS := $(firstword $(wildcard /usr/lib/*/openblas-openmp /usr/lib64/openblas-openmp))
ifneq ($(OPENBLAS),)
  BLAS_FLAGS := -DLMO_OPENBLAS -I$(subst /lib/,/include/,$(OPENBLAS))
  BLAS_LIBS  := -L$(OPENBLAS) -Wl,-rpath,$(OPENBLAS) -lopenblas
  BLAS_FOUND := OpenBLAS (OpenMP flavour) in $(OPENBLAS)
else ifeq ($(shell pkg-config --exists openblas 2>/dev/null && echo yes),yes)
  BLAS_FLAGS := -DLMO_OPENBLAS $(shell pkg-config --cflags openblas)
  BLAS_LIBS  := $(shell pkg-config --libs openblas)
  BLAS_FOUND := OpenBLAS by pkg-config (flavour unknown; the OpenMP one is faster here)
else
  BLAS_FOUND := none: our own blocked GEMM, several times slower (package libopenblas-openmp-dev)
endif
ifeq ($(call has_header,oneapi/dnnl/dnnl.h),yes)
  DNNL_FLAGS := -DLMO_ONEDNN
  DNNL_LIBS  := -ldnnl
  DNNL_FOUND := yes
else
  DNNL_FOUND := no: no AMX bf16 (package libdnnl-dev)
endif
NVCC_FOUND := $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc),none)
# A Python that can draw; scripts that draw nothing run with any python3.
PYTHON := $(or $(shell for p in python3 /usr/bin/python3; do \
            $$p -c 'import matplotlib' 2>/dev/null && command -v $$p && break; done),python3)

# ---- flags ----------------------------------------------------------------------------------------
# The time goes into llmc/cpu and the libraries; the rest is compiled for a short build.
OPT      ?= -O1 -g1
CPU_OPT  ?= -O3 -g1
SANITIZE ?=
WARN     := -Wall -Wextra
CXXFLAGS := -std=c++20 $(OPT) $(WARN) -fopenmp -I. $(SANITIZE)
LDLIBS   := $(BLAS_LIBS) $(DNNL_LIBS) -fopenmp -pthread

# ---- files ----------------------------------------------------------------------------------------
# llmc/cpu/*_kernels.cpp are compiled once for each instruction set; the backend picks at start.
KERNELS := $(wildcard llmc/cpu/*_kernels.cpp)
SOURCES := $(filter-out $(KERNELS),$(wildcard llmc/*/*.cpp))
TESTS   := $(wildcard tests/unit/*.cpp)
PRESETS := $(wildcard configs/optimizer/*.json)
ISAS    := baseline avx2 avx512
# errno and traps of the maths library stop loops from being vectorised and change no result.
KERNEL_FLAGS   := -fno-math-errno -fno-trapping-math
FLAGS_baseline :=
FLAGS_avx2     := -march=x86-64-v3
FLAGS_avx512   := -march=x86-64-v4 -mprefer-vector-width=512

OBJECTS := $(SOURCES:%.cpp=$(BUILD)/%.o) $(BUILD)/presets.o \
           $(foreach isa,$(ISAS),$(KERNELS:%.cpp=$(BUILD)/%.$(isa).o))
TEST_OBJECTS := $(TESTS:%.cpp=$(BUILD)/%.o)

.PHONY: all train test check bench docs clean help deps deps-test probe build-all tests train-now test-now check-now
.DELETE_ON_ERROR:
all: probe
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) build-all

build-all: $(BUILD)/train_gpt

help:
	@echo 'make train   install what is missing, build, prepare text, train configs/run/quickstart.json, plot'
	@echo 'make test    install what is missing, build, run all quick tests (at most 5 minutes on 2 cores)'
	@echo 'make check   the long tests: sanitizers, kills, other processors'
	@echo 'make all     build $(BUILD)/train_gpt only'
	@echo 'make docs    rewrite the generated documentation pages'
	@echo 'make clean   remove $(BUILD)/ (data/ and runs/ stay)'

probe:
	@echo 'compiler      $(shell $(CXX) --version 2>/dev/null | head -n 1)'
	@echo 'BLAS          $(BLAS_FOUND)'
	@echo 'oneDNN        $(DNNL_FOUND)'
	@echo 'nvcc          $(NVCC_FOUND) (the CUDA backend is not part of this version: CPU build)'

# ---- the two commands -----------------------------------------------------------------------------
# Packages come first and in a make of their own, because the probes above run when make starts.
deps:
	$(Q)scripts/setup.sh build train
deps-test:
	$(Q)scripts/setup.sh build train test

train: deps
	$(Q)$(MAKE) --no-print-directory all
	$(Q)$(MAKE) --no-print-directory train-now
train-now:
	$(Q)$(PYTHON) scripts/prepare_data.py austen --out data/austen
	$(Q)$(BUILD)/train_gpt train --config configs/run/quickstart.json
	$(Q)$(PYTHON) scripts/plot_run.py runs/quickstart
	$(Q)$(PYTHON) scripts/show_result.py runs/quickstart data/austen

test: deps-test
	$(Q)$(MAKE) --no-print-directory probe
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) build-all tests
	$(Q)$(MAKE) --no-print-directory test-now
test-now:
	$(Q)$(PYTHON) tests/run.py --build $(BUILD)

check: deps-test
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) build-all tests
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) BUILD=$(BUILD)/asan OPT='-O1 -g' CPU_OPT='-O1 -g' \
	    SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer' build-all tests
	$(Q)$(PYTHON) tests/run.py --build $(BUILD) --check

tests: $(BUILD)/unit_tests

docs: $(BUILD)/config_reference
	$(Q)$(BUILD)/config_reference > dev/docs/config.md

# ---- rules ----------------------------------------------------------------------------------------
$(BUILD)/train_gpt: $(BUILD)/train_gpt.o $(OBJECTS)
	@echo 'link  $@'
	$(Q)$(CXX) $(CXXFLAGS) $^ $(LDLIBS) -o $@

$(BUILD)/unit_tests: $(TEST_OBJECTS) $(OBJECTS)
	@echo 'link  $@'
	$(Q)$(CXX) $(CXXFLAGS) $^ -lgtest -lgtest_main $(LDLIBS) -o $@

$(BUILD)/config_reference: $(BUILD)/dev/config_reference.o $(OBJECTS)
	$(Q)$(CXX) $(CXXFLAGS) $^ $(LDLIBS) -o $@

# train_gpt.cu holds no CUDA syntax: any C++ compiler takes it.
$(BUILD)/train_gpt.o: train_gpt.cu
	@echo 'c++   $<'
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CXXFLAGS) -MMD -MP -x c++ -c $< -o $@

$(BUILD)/llmc/cpu/%.o: CXXFLAGS += $(CPU_OPT) $(BLAS_FLAGS) $(DNNL_FLAGS)

define isa_rule
$(BUILD)/%_kernels.$(1).o: %_kernels.cpp
	@echo 'c++   $$< ($(1))'
	@mkdir -p $$(@D)
	$$(Q)$$(CXX) $$(CXXFLAGS) $$(KERNEL_FLAGS) $$(FLAGS_$(1)) -DLMO_ISA=$(1) -MMD -MP -c $$< -o $$@
endef
$(foreach isa,$(ISAS),$(eval $(call isa_rule,$(isa))))

$(BUILD)/%.o: %.cpp
	@echo 'c++   $<'
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CXXFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/presets.o: $(BUILD)/presets.cpp
	@echo 'c++   $<'
	$(Q)$(CXX) $(CXXFLAGS) -c $< -o $@

# The optimizer presets become string literals, so that the program runs from any folder.
$(BUILD)/presets.cpp: $(PRESETS) Makefile
	@mkdir -p $(@D)
	$(Q){ echo '#include "llmc/train/config.h"'; \
	  echo 'const std::vector<lmo::EmbeddedPreset>& lmo::embedded_presets() {'; \
	  echo '    static const std::vector<EmbeddedPreset> presets = {'; \
	  for f in $(PRESETS); do \
	    printf '{"%s", R"json(' "$$(basename $$f .json)"; cat $$f; echo ')json"},'; done; \
	  echo '    };'; echo '    return presets;'; echo '}'; } > $@

clean:
	rm -rf $(BUILD)

-include $(OBJECTS:.o=.d) $(TEST_OBJECTS:.o=.d) $(BUILD)/train_gpt.d
