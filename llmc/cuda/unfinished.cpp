// TEMPORARY: what is not written yet. Weak, so that each real definition replaces its line.
#include "llmc/core/error.h"
#include "llmc/cuda/cuda_backend.h"
#define WEAK __attribute__((weak))
#define TODO(name) throw Error("CUDA: " name " is not written yet")
namespace lmo::cuda {
#define OP(Op, name) WEAK void CudaBackend::name(const Op&) { TODO(#name); }
#define WS(Op) WEAK size_t CudaBackend::workspace_bytes(const Op&) const { return 0; }
OP(Gemm, gemm) OP(SymmetricProduct, symmetric_product) OP(AttentionForward, attention_forward)
OP(AttentionBackward, attention_backward) OP(EmbeddingForward, embedding_forward)
OP(EmbeddingBackward, embedding_backward) OP(RmsNormForward, rmsnorm_forward)
OP(RmsNormBackward, rmsnorm_backward) OP(Rope, rope) OP(SwigluForward, swiglu_forward)
OP(SwigluBackward, swiglu_backward) OP(Classifier, classifier) OP(Sum, sum)
OP(SumOfSquares, sum_of_squares) OP(ClipFactor, clip_factor) OP(Momentum, momentum) OP(Adam, adam)
OP(Sign, sign) OP(FrobeniusNormalize, frobenius_normalize) OP(NewtonSchulz, newton_schulz)
OP(Apply, apply)
WS(Gemm) WS(SymmetricProduct) WS(AttentionForward) WS(AttentionBackward) WS(EmbeddingBackward)
WS(RmsNormBackward) WS(SumOfSquares) WS(FrobeniusNormalize) WS(NewtonSchulz)
WEAK void CudaBackend::convert(const Tensor&, const Tensor&) { TODO("convert"); }
struct Blas::Plans {};
WEAK Blas::Blas() {}
WEAK Blas::~Blas() {}
WEAK void Blas::run(const Product&, void*, cudaStream_t) { TODO("Blas::run"); }
WEAK std::string Blas::version() { return "?"; }
struct AttentionHeads;
WEAK void general_attention_forward(const AttentionForward&, const AttentionHeads&, cudaStream_t) { TODO("general attention"); }
WEAK void general_attention_backward(const AttentionBackward&, const AttentionHeads&, cudaStream_t) { TODO("general attention"); }
}  // namespace lmo::cuda
