// Attention by cuDNN's graphs, an alternative to the kernels of attention.cu. Two files define what
// is declared here: cudnn_attention.cpp where the headers of cudnn-frontend were found when the
// program was built, else (and in the emulator) cudnn_absent.cpp.
//
// State: compiled and linked only; never run on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "llmc/device/backend.h"

namespace lmo::cuda {

// The operations of backend.h where `library` is set: bf16, rows of at least one element. All throw
// an Error that names the shape where cuDNN refuses it.
class CudnnAttention {
  public:
    virtual ~CudnnAttention() = default;

    // These prepare what the calls on tensors of the same shape then use, which allocate nothing.
    virtual size_t workspace_bytes(const AttentionForward& op) = 0;
    virtual size_t workspace_bytes(const AttentionBackward& op) = 0;
    virtual void forward(const AttentionForward& op) = 0;
    virtual void backward(const AttentionBackward& op) = 0;
};

// Loads the library, on this stream of this device. Throws an Error that says what is missing.
std::unique_ptr<CudnnAttention> open_cudnn_attention(const cudaDeviceProp& device,
                                                     cudaStream_t stream);

}  // namespace lmo::cuda
