// Symmetric products by mma.sync as the trainer runs them.
#include "llmc/cuda/symmetric_choice.h"
#include "llmc/cuda/symmetric_mma.cuh"

namespace lmo::cuda {

void symmetric_gemm_mma(const SymmetricGemm& op, Stream stream) {
    check_operation(op);
    const auto run = [&](auto type) {
        using T = typename decltype(type)::type;
        symmetric_tile(SymmetricKernel::mma, op.n) == 64
            ? mma::launch_tiles<64, mma::kStages, T>(op, stream)
            : mma::launch_tiles<128, mma::kStages, T>(op, stream);
    };
    op.type == DType::f16 ? run(Type<fp16>()) : run(Type<bf16>());
}

}  // namespace lmo::cuda
