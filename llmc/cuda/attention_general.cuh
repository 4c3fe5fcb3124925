// Attention for what the tensor-core kernels do not take: fp32, and bf16 heads of other sizes. Any
// head size works.
#pragma once

#include "llmc/cuda/attention.cuh"
#include "llmc/device/backend.h"

namespace lmo::cuda {

void general_attention_forward(const AttentionForward& op, const AttentionHeads& heads,
                               cudaStream_t stream);
// The workspace holds two floats a row of lse.
void general_attention_backward(const AttentionBackward& op, const AttentionHeads& heads,
                                cudaStream_t stream);

}  // namespace lmo::cuda
