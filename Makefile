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
NVCC := $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))
CUDA_HOME ?= $(if $(NVCC),$(patsubst %/bin/nvcc,%,$(realpath $(NVCC))),/usr/local/cuda)
MPIRUN := $(shell command -v mpirun 2>/dev/null)
CUDA_HEADERS := $(wildcard $(CUDA_HOME)/include/cublasLt.h)
CUDA ?= $(if $(NVCC),yes,no)
# Headers of cudnn-frontend (scripts/setup.sh cudnn, or CUDNN_FRONTEND=DIR) and of cuDNN: attention by cuDNN too.
CUDNN_FRONTEND ?=
CUDNN_FOLDERS  := $(if $(CUDNN_FRONTEND),$(CUDNN_FRONTEND) $(CUDNN_FRONTEND)/include,\
                    build/cudnn_frontend/include $(CUDA_HOME)/include /usr/local/include /usr/include)
CUDNN_FOUND    := $(patsubst %/cudnn_frontend.h,%,$(firstword $(wildcard $(addsuffix /cudnn_frontend.h,$(CUDNN_FOLDERS)))))
ifeq ($(wildcard $(CUDNN_FOUND)/cudnn.h $(CUDA_HOME)/include/cudnn.h /usr/include/cudnn.h /usr/include/*/cudnn.h),)
  CUDNN_FOUND :=
endif
ifneq ($(CUDNN_FRONTEND),)
  ifeq ($(CUDNN_FOUND),)
    $(error CUDNN_FRONTEND=$(CUDNN_FRONTEND): no cudnn_frontend.h there, or no cudnn.h in $(CUDA_HOME)/include and /usr/include)
  endif
endif
# A Python that can draw; scripts that draw nothing run with any python3.
PYTHON := $(or $(shell for p in python3 /usr/bin/python3; do \
            $$p -c 'import matplotlib' 2>/dev/null && command -v $$p && break; done),python3)

# ---- flags ----------------------------------------------------------------------------------------
# The time goes into llmc/cpu and the libraries; the rest, and tests even more, is compiled for a short build.
OPT      ?= -O1 -g1
CPU_OPT  ?= -O3 -g1
TEST_OPT ?= -O0 -g0
SANITIZE ?=
WARN     := -Wall -Wextra
# g++ would collect garbage each time that it has another 128 MB: a tenth of the time of a file with JSON.
GARBAGE  := $(if $(findstring gcc version,$(shell $(CXX) -v 2>&1)),--param ggc-min-heapsize=524288)
CXXFLAGS := -std=c++20 $(OPT) $(WARN) -fopenmp -I. $(GARBAGE) $(SANITIZE)
LDLIBS   := $(BLAS_LIBS) $(DNNL_LIBS) -fopenmp -pthread

# ---- files ----------------------------------------------------------------------------------------
# llmc/cpu/*_kernels.cpp are compiled once for each instruction set; the backend picks at start.
KERNELS := $(wildcard llmc/cpu/*_kernels.cpp)
SOURCES := $(filter-out $(KERNELS) llmc/cuda/%,$(wildcard llmc/*/*.cpp))
# The targets of the fuzzers, and what they share: a part of the unit tests too (over tests/fuzz/corpus).
FUZZ    := $(filter-out %/main.cpp,$(wildcard tests/fuzz/*.cpp))
TESTS   := $(filter-out %/backends_cuda.cpp %/test_backend_communicator.cpp %/test_backend_cudnn.cpp,$(wildcard tests/unit/*.cpp)) $(FUZZ)
PRESETS := $(wildcard configs/optimizer/*.json)
ISAS    := baseline avx2 avx512
# errno and traps of the maths library stop loops from being vectorised and change no result.
KERNEL_FLAGS   := -fno-math-errno -fno-trapping-math
FLAGS_baseline :=
FLAGS_avx2     := -march=x86-64-v3
FLAGS_avx512   := -march=x86-64-v4 -mprefer-vector-width=512

CUDA_KERNELS := $(wildcard llmc/cuda/*.cu)
# What ranks under the emulator load as NCCL.
NCCL_STANDIN := $(BUILD)/emulated/nccl/libnccl.so.2
CUDA_HOST    := $(filter-out %/cublaslt_on_demand.cpp %/cudnn_attention.cpp %/cudnn_absent.cpp,$(wildcard llmc/cuda/*.cpp))
# What the emulator has in its own way.
CUDA_LIBRARY := $(addprefix $(BUILD)/llmc/cuda/,cublaslt_on_demand.o cudnn_$(if $(CUDNN_FOUND),attention,absent).o)
CUDNN_ABSENT := $(BUILD)/llmc/cuda/cudnn_absent.o

CUDA_OBJECTS := $(if $(filter yes,$(CUDA)),$(CUDA_KERNELS:%.cu=$(BUILD)/cuda/%.o) $(CUDA_HOST:%.cpp=$(BUILD)/%.o) $(CUDA_LIBRARY))
OBJECTS := $(SOURCES:%.cpp=$(BUILD)/%.o) $(BUILD)/presets.o \
           $(foreach isa,$(ISAS),$(KERNELS:%.cpp=$(BUILD)/%.$(isa).o))
TEST_OBJECTS := $(TESTS:%.cpp=$(BUILD)/%.o)

.PHONY: all train test check bench docs clean help deps deps-test deps-check probe build-all tests long-tests \
        train-now test-now check-now fuzz fuzzers
.DELETE_ON_ERROR:
all: probe
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) build-all

build-all: $(BUILD)/train_gpt

help:
	@echo 'make train   install what is missing, build, prepare text, train configs/run/quickstart.json, plot'
	@echo 'make test    install what is missing, build, run all quick tests (at most 5 minutes on 2 cores)'
	@echo 'make check   the long tests: sanitizers, static checkers, fuzzers, kills, failing disks, other processors'
	@echo 'make fuzz    every fuzzer for FUZZ_SECONDS (15), from what earlier runs found; TARGETS="config ..." for some'
	@echo 'make all     build $(BUILD)/train_gpt only'
	@echo 'make docs    rewrite the generated documentation pages'
	@echo 'make clean   remove $(BUILD)/ (data/ and runs/ stay)'

probe:
	@echo 'compiler      $(shell $(CXX) --version 2>/dev/null | head -n 1)'
	@echo 'BLAS          $(BLAS_FOUND)'
	@echo 'oneDNN        $(DNNL_FOUND)'
	@echo 'nvcc          $(or $(NVCC),none: CPU build)'
	@echo 'cuDNN         $(or $(CUDNN_FOUND:%=attention by it, headers in %),no: attention by our own kernels only (scripts/setup.sh cudnn))'
	@echo 'mpirun        $(or $(MPIRUN),none: --gpus N starts ranks on one machine, tests with mpirun are skipped)'

# ---- the two commands -----------------------------------------------------------------------------
# Packages come first and in a make of their own, because the probes above run when make starts.
deps:
	$(Q)scripts/setup.sh build train
deps-test:
	$(Q)scripts/setup.sh build train test
deps-check:
	$(Q)scripts/setup.sh build train test check $(if $(NVCC),cudnn)

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
	$(Q)LMO_CUDA_HEADERS=$(CUDA_HEADERS) LMO_NVCC=$(NVCC) $(PYTHON) tests/run.py --build $(BUILD)

check: deps-check
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) build-all tests long-tests
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) BUILD=$(BUILD)/asan CUDA=no CUDA_HEADERS= OPT='-O1 -g' CPU_OPT='-O1 -g' \
	    SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer' build-all tests
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) BUILD=$(BUILD)/tsan CUDA=no CUDA_HEADERS= OPT='-O0 -g1' CPU_OPT='-O0 -g1' \
	    SANITIZE='-fsanitize=thread -fno-openmp -Wno-unknown-pragmas' TESTS=tests/unit/test_data.cpp \
	    build-all $(BUILD)/tsan/unit_tests
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) fuzzers
	$(Q)LMO_CUDA_HEADERS=$(CUDA_HEADERS) LMO_NVCC=$(NVCC) $(PYTHON) tests/run.py --build $(BUILD) --check

# The emulated programs need the headers of a CUDA toolkit; the last one needs nvcc, and a GPU to run.
tests: $(BUILD)/unit_tests $(if $(CUDA_HEADERS),$(addprefix $(BUILD)/emulated/plain/,cuda_tests train_gpt) $(NCCL_STANDIN))
long-tests: $(BUILD)/faults.so $(if $(CUDA_HEADERS),$(foreach v,race asan,$(addprefix $(BUILD)/emulated/$v/,cuda_tests emulator_tests)) \
              $(addprefix $(BUILD)/emulated/,plain/conformance race/conformance plain/emulator_tests plain/newton_schulz_bench)) \
            $(if $(NVCC),$(addprefix $(BUILD)/cuda/,cuda_tests conformance newton_schulz_bench) $(CUDA_KERNELS:%.cu=$(BUILD)/cuda/%.ptx))

# ---- fuzzers: clang's libFuzzer, over the readers of files -------------------------------------------
FUZZ_CXX     ?= clang++
FUZZ_SECONDS ?= 15
FUZZ_SOURCES := $(wildcard llmc/core/*.cpp llmc/io/*.cpp tests/fuzz/*.cpp) llmc/norm/newton_schulz.cpp llmc/optim/config.cpp \
                $(addprefix llmc/data/,bpe.cpp bpe_files.cpp dataset.cpp split.cpp tokenizer.cpp) \
                $(addprefix llmc/train/,config.cpp config_group.cpp config_optimizer.cpp config_stages.cpp hf.cpp json_merge.cpp run_state.cpp \
                  schema.cpp schema_groups.cpp schema_stages.cpp schema_resolve.cpp)
FUZZ_OBJECTS := $(FUZZ_SOURCES:%.cpp=$(BUILD)/fuzz/%.o) $(BUILD)/fuzz/presets.o
FUZZ_FLAGS   := -std=c++20 -O1 -g1 $(WARN) -I. -fno-omit-frame-pointer -fno-sanitize-recover=undefined \
                -fsanitize=address,undefined,float-cast-overflow

fuzz: deps-check
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) fuzzers
	$(Q)LMO_BUILD=$(BUILD) $(PYTHON) tests/fuzz/run_fuzzers.py --seconds $(FUZZ_SECONDS) $(TARGETS)
# Nothing where there is no libFuzzer: tests/long/test_fuzz.py is then skipped by name.
fuzzers:
	$(Q)if tests/fuzz/has_libfuzzer $(FUZZ_CXX); then $(MAKE) --no-print-directory $(BUILD)/fuzz/readers; fi

$(BUILD)/fuzz/readers: $(FUZZ_OBJECTS)
	@echo 'link  $@'
	$(Q)$(FUZZ_CXX) $(FUZZ_FLAGS) -fsanitize=fuzzer $^ -pthread -o $@
$(BUILD)/fuzz/%.o: %.cpp
	@echo 'clang $<'
	@mkdir -p $(@D)
	$(Q)$(FUZZ_CXX) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c $< -o $@
$(BUILD)/fuzz/presets.o: $(BUILD)/presets.cpp
	$(Q)mkdir -p $(@D) && $(FUZZ_CXX) -std=c++20 -I. -c $< -o $@
-include $(FUZZ_SOURCES:%.cpp=$(BUILD)/fuzz/%.d)

docs: $(BUILD)/config_reference
	$(Q)$(BUILD)/config_reference > dev/docs/config.md

# ---- rules ----------------------------------------------------------------------------------------
# The CUDA backend is part of the program where nvcc is found (CUDA=no leaves it out).
$(BUILD)/train_gpt: $(BUILD)/train_gpt.o $(OBJECTS) $(CUDA_OBJECTS)
	@echo 'link  $@'
	$(Q)$(CXX) $(CXXFLAGS) $^ $(LDLIBS) $(if $(CUDA_OBJECTS),$(CUDA_LIBS)) -o $@

$(BUILD)/unit_tests: $(TEST_OBJECTS) $(OBJECTS)
	@echo 'link  $@'
	$(Q)$(CXX) $(CXXFLAGS) $^ -lgtest -lgtest_main $(LDLIBS) -o $@

# Preloaded into train_gpt by the tests of tests/long that make its system calls fail.
$(BUILD)/faults.so: tests/faults.cpp
	@echo 'c++   $<'
	@mkdir -p $(@D)
	$(Q)$(CXX) -std=c++20 -O1 $(WARN) -shared -fPIC $< -ldl -o $@

$(BUILD)/config_reference: $(BUILD)/dev/config_reference.o $(OBJECTS)
	$(Q)$(CXX) $(CXXFLAGS) $^ $(LDLIBS) -o $@

# train_gpt.cu holds no CUDA syntax: any C++ compiler takes it.
$(BUILD)/train_gpt.o: train_gpt.cu
	@echo 'c++   $<'
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CXXFLAGS) -MMD -MP -x c++ -c $< -o $@

$(BUILD)/llmc/cpu/%.o: CXXFLAGS += $(CPU_OPT) $(BLAS_FLAGS) $(DNNL_FLAGS)
# For processors that have these instructions alone. What g++ 12 takes for uninitialised is in its own <immintrin.h>.
$(BUILD)/llmc/cpu/bf16_tiles.o: CXXFLAGS += $(KERNEL_FLAGS) $(FLAGS_avx512) -mavx512bf16 -Wno-uninitialized -Wno-maybe-uninitialized
$(BUILD)/llmc/norm/singular_values.o: CXXFLAGS += $(CPU_OPT)
# Unfused, so that ranks on processors of different kinds read the same numbers from a message.
$(patsubst %,$(BUILD)/llmc/dist/%.o,compressor largest low_rank natural): CXXFLAGS += $(CPU_OPT) -ffp-contract=off
# Published integrals are repeated operation by operation: none may be fused.
$(BUILD)/llmc/schedule/%.o: CXXFLAGS += -ffp-contract=off
$(BUILD)/tests/%.o: private CXXFLAGS += $(TEST_OPT)
# Its reference, in plain loops, runs for longer than that saves.
$(BUILD)/tests/unit/test_backend_attention.o: private CXXFLAGS += -O1

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
	$(Q)$(CXX) $(CXXFLAGS) $(HEADERS:%.gch=-include %) -MMD -MP -c $< -o $@

# Headers of JSON and GoogleTest are most of some files: these are compiled once. Not under ccache, which would
# keep less. A compiler that does not take the .gch reads the copy beside it.
ifeq ($(findstring ccache,$(CXX)),)
  WITH_JSON := $(filter $(BUILD)/llmc/train/% $(BUILD)/llmc/io/%,$(OBJECTS))
  $(WITH_JSON): private HEADERS := $(BUILD)/llmc/precompiled.h.gch
  $(WITH_JSON): $(BUILD)/llmc/precompiled.h.gch
  WITH_GTEST := $(filter-out %/test_backend_attention.o,$(TEST_OBJECTS))
  $(WITH_GTEST): private HEADERS := $(BUILD)/tests/precompiled.h.gch
  $(WITH_GTEST): $(BUILD)/tests/precompiled.h.gch
endif
$(BUILD)/tests/precompiled.h.gch: CXXFLAGS += $(TEST_OPT)
$(BUILD)/%/precompiled.h.gch: %/precompiled.h
	@echo 'c++   $<'
	@mkdir -p $(@D) && cp $< $(@:.gch=)
	$(Q)$(CXX) $(CXXFLAGS) -MD -MP -MF $@.d -MT $@ -x c++-header $< -o $@

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

# ---- the CUDA backend: by nvcc, and by g++ for the emulator ----------------------------------------
# Architectures with machine code of their own; newer ones compile the PTX of compute_80 at start.
GENCODE    ?= -gencode arch=compute_80,code=[sm_80,compute_80] -gencode arch=compute_90a,code=sm_90a
NVCC_FLAGS = -std=c++20 -O1 -lineinfo -I. $(GENCODE) -Xptxas -v,--warn-on-spills \
              -Xcompiler -Wall,-Wextra,-fopenmp
CUDA_LIBS  := -L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt
CUDA_TESTS   := $(filter-out %/test_backend_cpu.cpp %/test_backend_cudnn.cpp,$(wildcard tests/unit/test_backend_*.cpp)) \
                tests/unit/backends_cuda.cpp $(wildcard tests/cuda/*.cpp)
CORE_OBJECTS := $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard llmc/core/*.cpp llmc/device/*.cpp))
# The emulator has no cuDNN.
DEVICE_TESTS := $(BUILD)/tests/unit/test_backend_cudnn.o
CUDA_TEST_OBJECTS := $(CUDA_TESTS:%.cpp=$(BUILD)/%.o) $(CUDA_HOST:%.cpp=$(BUILD)/%.o) $(CORE_OBJECTS)

$(addprefix $(BUILD)/,llmc/cuda/%.o tests/cuda/%.o tests/emulator/%.o): CXXFLAGS += -isystem $(CUDA_HOME)/include
# 40000 lines of headers: debugging them is not our task.
$(BUILD)/llmc/cuda/cudnn_attention.o: private CXXFLAGS += -isystem $(CUDNN_FOUND) -g0

# Hopper's instructions exist for sm_90a alone, whatever else is asked for.
PTX_ARCH := compute_90
$(addprefix $(BUILD)/cuda/,llmc/cuda/%_hopper.o dev/bench/%_hopper.o): override GENCODE := -gencode arch=compute_90a,code=sm_90a
$(BUILD)/cuda/llmc/cuda/%_hopper.ptx: PTX_ARCH := compute_90a

# nvcc prints registers and spills of every kernel; tests/check_kernels.py reads them.
$(BUILD)/cuda/%.o: %.cu
	@echo 'nvcc  $<'
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@ 2> $(@:.o=.ptxas) || { cat $(@:.o=.ptxas); exit 1; }

# The PTX alone, for tests/check_kernels.py.
$(BUILD)/cuda/%.ptx: %.cu
	@echo 'ptx   $<'
	@mkdir -p $(@D)
	$(Q)$(NVCC) -std=c++20 -O3 -I. -arch=$(PTX_ARCH) -MMD -MP -MF $@.d -ptx $< -o $@

$(BUILD)/cuda/cuda_tests: $(CUDA_KERNELS:%.cu=$(BUILD)/cuda/%.o) $(CUDA_TEST_OBJECTS) $(DEVICE_TESTS) $(CUDA_LIBRARY)
	@echo 'link  $@'
	$(Q)$(CXX) $(CXXFLAGS) $^ -lgtest -lgtest_main -pthread $(CUDA_LIBS) -o $@

# Newton-Schulz kernel by kernel (dev/bench/newton_schulz.cpp).
NEWTON_SCHULZ_BENCH := $(BUILD)/dev/bench/newton_schulz.o
$(NEWTON_SCHULZ_BENCH): CXXFLAGS += -isystem $(CUDA_HOME)/include
BENCH_KERNELS := $(wildcard dev/bench/*.cu)
$(BUILD)/cuda/newton_schulz_bench: $(NEWTON_SCHULZ_BENCH) $(OBJECTS) $(CUDA_KERNELS:%.cu=$(BUILD)/cuda/%.o) \
        $(BENCH_KERNELS:%.cu=$(BUILD)/cuda/%.o) \
        $(CUDA_HOST:%.cpp=$(BUILD)/%.o) $(CUDA_LIBRARY)
	@echo 'link  $@'
	$(Q)$(CXX) $(CXXFLAGS) $^ $(LDLIBS) $(CUDA_LIBS) -o $@

# Instructions beside the emulator's. Those of Hopper exist for sm_90a alone.
CONFORMANCE := $(wildcard dev/conformance/*.cu)
$(BUILD)/cuda/dev/conformance/hopper%.o: GENCODE := -gencode arch=compute_90a,code=sm_90a
$(BUILD)/cuda/conformance: $(CONFORMANCE:%.cu=$(BUILD)/cuda/%.o) $(CORE_OBJECTS)
	@echo 'link  $@'
	$(Q)$(CXX) $(CXXFLAGS) $^ -pthread $(CUDA_LIBS) -o $@

# The emulator's three builds: plain; with its checker of races, initialisation and bounds, which
# g++'s calls for ThreadSanitizer feed (its library is not linked); with AddressSanitizer and UBSan.
# Its runtime is never instrumented.
EMULATED      := plain race asan
EMULATOR_CODE := $(wildcard dev/emulator/*.cpp)
EMULATOR_TESTS := $(wildcard tests/emulator/*.cu)
EMULATE       := -DLMO_EMULATE_CUDA -fno-strict-aliasing -Wno-unknown-pragmas -Wno-psabi -isystem $(CUDA_HOME)/include -g1
EMULATE_KERNELS_plain := -O2
EMULATE_KERNELS_race  := -O1 -fsanitize=thread -DLMO_EMULATOR_RACE
EMULATE_KERNELS_asan  := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -DLMO_EMULATOR_ASAN
EMULATE_RUNTIME_plain := -O2
EMULATE_RUNTIME_race  := -O2 -DLMO_EMULATOR_RACE
EMULATE_RUNTIME_asan  := -O2 -DLMO_EMULATOR_ASAN
EMULATE_LINK_asan     := -fsanitize=address,undefined
# AddressSanitizer opens libraries in the program's name: it looks where an old tag says.
EMULATE_FIND_NCCL     := -Wl,-rpath,'$$ORIGIN/../nccl'
EMULATE_FIND_NCCL_asan := -Wl,--disable-new-dtags
$(BUILD)/emulated/plain/tests/%.o: EMULATE_KERNELS_plain := -O0

# It takes the emulator's functions from the program that loads it.
$(NCCL_STANDIN): $(wildcard dev/emulator/nccl/*) dev/emulator/runtime.h llmc/cuda/nccl_api.h
	@echo 'link  $@'
	@mkdir -p $(@D)
	$(Q)$(CXX) -std=c++20 -O2 -g1 -I. $(WARN) -isystem $(CUDA_HOME)/include -shared -fPIC $(filter %.cpp,$^) -lrt -o $@

define emulated_rules
$(BUILD)/emulated/$(1)/%.o: %.cu
	@echo 'c++   $$< (emulated, $(1))'
	@mkdir -p $$(@D)
	$$(Q)$$(CXX) -std=c++20 -I. $$(WARN) $$(GARBAGE) $$(EMULATE) $$(EMULATE_KERNELS_$(1)) $$(HEADERS:%.gch=-include %) -MMD -MP -x c++ -c $$< -o $$@
$(if $(findstring ccache,$(CXX)),,$(CUDA_KERNELS:%.cu=$(BUILD)/emulated/$(1)/%.o): private HEADERS := $(BUILD)/emulated/$(1)/precompiled.h.gch)
$(if $(findstring ccache,$(CXX)),,$(CUDA_KERNELS:%.cu=$(BUILD)/emulated/$(1)/%.o): $(BUILD)/emulated/$(1)/precompiled.h.gch)
$(BUILD)/emulated/$(1)/precompiled.h.gch: dev/emulator/precompiled.h
	@echo 'c++   $$< ($(1))'
	@mkdir -p $$(@D) && cp $$< $$(@:.gch=)
	$$(Q)$$(CXX) -std=c++20 -I. $$(WARN) $$(GARBAGE) $$(EMULATE) $$(EMULATE_KERNELS_$(1)) -MD -MP -MF $$@.d -MT $$@ -x c++-header $$< -o $$@
$(BUILD)/emulated/$(1)/dev/emulator/%.o: dev/emulator/%.cpp
	@echo 'c++   $$< ($(1))'
	@mkdir -p $$(@D)
	$$(Q)$$(CXX) -std=c++20 -I. $$(WARN) $$(GARBAGE) $$(EMULATE) $$(EMULATE_RUNTIME_$(1)) -MMD -MP -c $$< -o $$@
$(BUILD)/emulated/$(1)/cuda_tests: $$(CUDA_KERNELS:%.cu=$(BUILD)/emulated/$(1)/%.o) $$(CUDA_TEST_OBJECTS) $(CUDNN_ABSENT) \
        $(BUILD)/tests/emulator/production_sizes.o $(BUILD)/tests/emulator/nccl_declarations.o \
        $$(EMULATOR_CODE:%.cpp=$(BUILD)/emulated/$(1)/%.o)
	@echo 'link  $$@'
	$$(Q)$$(CXX) -rdynamic $$(EMULATE_LINK_$(1)) $$^ $$(EMULATE_FIND_NCCL) $$(EMULATE_FIND_NCCL_$(1)) -lgtest -lgtest_main -pthread -ldl -fopenmp -o $$@
$(BUILD)/emulated/$(1)/train_gpt: $$(CUDA_KERNELS:%.cu=$(BUILD)/emulated/$(1)/%.o) $$(CUDA_HOST:%.cpp=$(BUILD)/%.o) $(CUDNN_ABSENT) \
        $$(EMULATOR_CODE:%.cpp=$(BUILD)/emulated/$(1)/%.o) $(BUILD)/train_gpt.o $$(OBJECTS)
	@echo 'link  $$@'
	$$(Q)$$(CXX) -rdynamic $$(EMULATE_LINK_$(1)) $$^ $$(EMULATE_FIND_NCCL) $$(EMULATE_FIND_NCCL_$(1)) $$(LDLIBS) -ldl -o $$@
$(BUILD)/emulated/$(1)/newton_schulz_bench: $$(patsubst %.cu,$(BUILD)/emulated/$(1)/%.o,$$(CUDA_KERNELS) $$(BENCH_KERNELS)) \
        $$(CUDA_HOST:%.cpp=$(BUILD)/%.o) $$(EMULATOR_CODE:%.cpp=$(BUILD)/emulated/$(1)/%.o) $$(NEWTON_SCHULZ_BENCH) $(CUDNN_ABSENT) $$(OBJECTS)
	@echo 'link  $$@'
	$$(Q)$$(CXX) -rdynamic $$(EMULATE_LINK_$(1)) $$^ $$(LDLIBS) -ldl -o $$@
$(BUILD)/emulated/$(1)/emulator_tests: $$(EMULATOR_TESTS:%.cu=$(BUILD)/emulated/$(1)/%.o) $$(CORE_OBJECTS) \
        $$(EMULATOR_CODE:%.cpp=$(BUILD)/emulated/$(1)/%.o)
	@echo 'link  $$@'
	$$(Q)$$(CXX) -rdynamic $$(EMULATE_LINK_$(1)) $$^ -lgtest -lgtest_main -pthread -ldl -fopenmp -o $$@
$(BUILD)/emulated/$(1)/conformance: $$(CONFORMANCE:%.cu=$(BUILD)/emulated/$(1)/%.o) $$(CORE_OBJECTS) \
        $$(EMULATOR_CODE:%.cpp=$(BUILD)/emulated/$(1)/%.o)
	@echo 'link  $$@'
	$$(Q)$$(CXX) -rdynamic $$(EMULATE_LINK_$(1)) $$^ -pthread -ldl -fopenmp -o $$@
-include $$(patsubst %.cu,$(BUILD)/emulated/$(1)/%.d,$$(CUDA_KERNELS) $$(BENCH_KERNELS) $$(EMULATOR_TESTS) $$(CONFORMANCE)) \
         $$(EMULATOR_CODE:%.cpp=$(BUILD)/emulated/$(1)/%.d) $(BUILD)/emulated/$(1)/precompiled.h.gch.d
endef
$(foreach variant,$(EMULATED),$(eval $(call emulated_rules,$(variant))))

clean:
	rm -rf $(BUILD)

-include $(OBJECTS:.o=.d) $(TEST_OBJECTS:.o=.d) $(BUILD)/train_gpt.d $(wildcard $(BUILD)/*/precompiled.h.gch.d) \
         $(CUDA_KERNELS:%.cu=$(BUILD)/cuda/%.d) $(BENCH_KERNELS:%.cu=$(BUILD)/cuda/%.d) $(CUDA_KERNELS:%.cu=$(BUILD)/cuda/%.ptx.d) $(CUDA_HOST:%.cpp=$(BUILD)/%.d) $(CUDA_LIBRARY:.o=.d) $(CUDNN_ABSENT:.o=.d) \
         $(CUDA_TESTS:%.cpp=$(BUILD)/%.d) $(DEVICE_TESTS:.o=.d) $(addprefix $(BUILD)/tests/emulator/,production_sizes.d nccl_declarations.d) $(NEWTON_SCHULZ_BENCH:.o=.d)
