// The narrow form of symmetric products on Hopper as the trainer runs it.
#include "llmc/cuda/symmetric_narrow.cuh"

namespace lmo::cuda {

void symmetric_gemm_narrow(const SymmetricGemm& op, Stream stream) {
    check_operation(op);
    op.type == DType::f16 ? narrow::launch_tiles<fp16, narrow::kStages>(op, stream)
                          : narrow::launch_tiles<bf16, narrow::kStages>(op, stream);
}

}  // namespace lmo::cuda
