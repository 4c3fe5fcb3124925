// cublasLt, loaded when its first function is called: it has half a gigabyte, and starting with it
// takes a tenth of a second that a command which uses no GPU need not wait for (nor need the
// library be there). Linked in place of -lcublasLt; the emulator has functions of its own.
#include <cublasLt.h>
#include <dlfcn.h>

#include <string>

#include "llmc/core/error.h"

namespace {

void* library() {
    static void* const handle = [] {
        const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
        void* const opened = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (opened == nullptr) {
            throw lmo::Error("CUDA: cannot load " + name + ": " + dlerror() +
                             "; install cuBLAS of CUDA " + std::to_string(CUBLAS_VER_MAJOR) +
                             ", or name its folder in LD_LIBRARY_PATH");
        }
        return opened;
    }();
    return handle;
}

template <typename Function>
Function* find(const char* name) {
    void* const found = dlsym(library(), name);
    if (found == nullptr) throw lmo::Error(std::string("CUDA: cublasLt has no ") + name);
    return reinterpret_cast<Function*>(found);
}

}  // namespace

// Defines a function of cublasLt.h that calls the library's.
#define ON_DEMAND(Result, name, parameters, arguments)            \
    Result name parameters {                                      \
        static const auto function = find<decltype(name)>(#name); \
        return function arguments;                                \
    }

// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name): in our words
using Status = cublasStatus_t;
using Description = cublasLtMatmulDesc_t;
using Layout = cublasLtMatrixLayout_t;
using Preference = cublasLtMatmulPreference_t;

ON_DEMAND(Status, cublasLtCreate, (cublasLtHandle_t * handle), (handle))
ON_DEMAND(Status, cublasLtDestroy, (cublasLtHandle_t handle), (handle))
ON_DEMAND(size_t, cublasLtGetVersion, (), ())
ON_DEMAND(const char*, cublasLtGetStatusName, (Status status), (status))
ON_DEMAND(const char*, cublasLtGetStatusString, (Status status), (status))

ON_DEMAND(Status, cublasLtMatmulDescCreate,
          (Description * made, cublasComputeType_t compute, cudaDataType_t scale),
          (made, compute, scale))
ON_DEMAND(Status, cublasLtMatmulDescDestroy, (Description description), (description))
ON_DEMAND(Status, cublasLtMatmulDescSetAttribute,
          (Description description, cublasLtMatmulDescAttributes_t attribute, const void* value,
           size_t bytes),
          (description, attribute, value, bytes))

ON_DEMAND(Status, cublasLtMatrixLayoutCreate,
          (Layout * made, cudaDataType type, uint64_t rows, uint64_t columns, int64_t leading),
          (made, type, rows, columns, leading))
ON_DEMAND(Status, cublasLtMatrixLayoutDestroy, (Layout layout), (layout))
ON_DEMAND(Status, cublasLtMatrixLayoutSetAttribute,
          (Layout layout, cublasLtMatrixLayoutAttribute_t attribute, const void* value,
           size_t bytes),
          (layout, attribute, value, bytes))

ON_DEMAND(Status, cublasLtMatmulPreferenceCreate, (Preference * made), (made))
ON_DEMAND(Status, cublasLtMatmulPreferenceDestroy, (Preference preference), (preference))
ON_DEMAND(Status, cublasLtMatmulPreferenceSetAttribute,
          (Preference preference, cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
           size_t bytes),
          (preference, attribute, value, bytes))

ON_DEMAND(Status, cublasLtMatmulAlgoGetHeuristic,
          (cublasLtHandle_t handle, Description description, Layout a, Layout b, Layout c, Layout d,
           Preference preference, int requested, cublasLtMatmulHeuristicResult_t results[],
           int* found),
          (handle, description, a, b, c, d, preference, requested, results, found))
ON_DEMAND(Status, cublasLtMatmul,
          (cublasLtHandle_t handle, Description description, const void* alpha, const void* a,
           Layout a_layout, const void* b, Layout b_layout, const void* beta, const void* c,
           Layout c_layout, void* d, Layout d_layout, const cublasLtMatmulAlgo_t* algorithm,
           void* workspace, size_t bytes, cudaStream_t stream),
          (handle, description, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout,
           algorithm, workspace, bytes, stream))
// NOLINTEND(readability-inconsistent-declaration-parameter-name)
