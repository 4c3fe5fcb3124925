// The wide form of symmetric products on Hopper as the trainer runs it.
#include "llmc/cuda/symmetric_wide.cuh"

namespace lmo::cuda {

void symmetric_gemm_wide(const SymmetricGemm& op, Stream stream) {
    check_operation(op);
    op.type == DType::f16 ? wide::launch_tiles<fp16, wide::kStages>(op, stream)
                          : wide::launch_tiles<bf16, wide::kStages>(op, stream);
}

}  // namespace lmo::cuda
