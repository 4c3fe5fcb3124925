// A stream as kernels are launched on it.
#pragma once

#include <cuda_runtime_api.h>

namespace lmo::cuda {

// dependent: a kernel may be launched before the work ahead of it has ended ("programmatic
// dependent launch", compute capability 9.0); each of ours waits for that itself
// (dependent_launch.cuh).
struct Stream {
    // Not explicit: a plain stream is one on which kernels follow each other.
    Stream(cudaStream_t handle = nullptr, bool may_overlap = false)
        : stream(handle), dependent(may_overlap) {}
    operator cudaStream_t() const { return stream; }

    cudaStream_t stream;
    bool dependent;
};

// Whether our kernels, as compiled for the current device, wait for the work ahead. sm_90a's
// machine code does; what other devices make of the PTX of compute_80 does not.
bool kernels_wait();

}  // namespace lmo::cuda
