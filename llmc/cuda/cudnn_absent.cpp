// In place of cudnn_attention.cpp in programs that are built without the headers of cudnn-frontend,
// and in the emulator.
#include "llmc/core/error.h"
#include "llmc/cuda/cudnn_attention.h"

namespace lmo::cuda {

std::unique_ptr<CudnnAttention> open_cudnn_attention(const cudaDeviceProp& /*device*/,
                                                     cudaStream_t /*stream*/) {
    throw Error(
        "this program is built without attention by cuDNN, which takes nvcc and the headers of "
        "cudnn-frontend (scripts/setup.sh cudnn, then make)");
}

}  // namespace lmo::cuda
