// CUDA's status codes as exceptions. Host code.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "llmc/core/error.h"

namespace lmo::cuda {

// Throws an Error that names what was being done and what the device said.
inline void check(cudaError_t status, const std::string& doing) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // else the next call reports it again
    throw Error("CUDA: " + doing + ": " + cudaGetErrorString(status) + " (" +
                cudaGetErrorName(status) + ")");
}

}  // namespace lmo::cuda
