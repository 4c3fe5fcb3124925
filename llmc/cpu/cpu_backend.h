// The processor as a backend: llmc/device/backend.h on ordinary memory, with OpenMP threads.
//
// Work is divided into blocks whose borders depend on the shapes alone, and sums over blocks are
// added in order, so most results do not even depend on the number of threads (those of library
// GEMMs may). The element loops are in *_kernels.cpp, the operations in a file a family.
#pragma once

#include <chrono>
#include <vector>

#include "llmc/cpu/bf16_matmul.h"
#include "llmc/cpu/gemm.h"
#include "llmc/cpu/newton_schulz_bf16.h"
#include "llmc/cpu/parallel.h"
#include "llmc/device/backend.h"

namespace lmo::cpu {

class CpuBackend : public Backend {
  public:
    explicit CpuBackend(int threads);

    std::string describe() const override;
    DType preferred_compute() const override;
    DType preferred_newton_schulz() const override { return DType::f32; }
    bool has_newton_schulz(DType inner) const override {
        return inner == DType::f32 || (inner == DType::bf16 && bf16_tiles_ != nullptr);
    }
    bool has_fp64() const override { return true; }
    std::string missing_attention_library() const override {
        return "the CPU has no library for attention";
    }
    bool is_separate() const override { return false; }
    double free_bytes() const override;

    void* allocate(size_t bytes) override;
    void release(void* memory) override;
    void copy_in(const Tensor& to, const void* host) override;
    void copy_out(void* host, const Tensor& from) override;
    void copy(const Tensor& to, const Tensor& from) override;
    void zero(const Tensor& tensor) override;

    std::unique_ptr<Graph> capture(std::function<void()> body) override;
    void synchronize() override {}
    void mark(size_t moment) override;
    double seconds_between(size_t from, size_t to) override;

    size_t workspace_bytes(const Gemm& op) const override;
    size_t workspace_bytes(const SymmetricProduct& op) const override;
    size_t workspace_bytes(const AttentionForward& op) const override;
    size_t workspace_bytes(const AttentionBackward& op) const override;
    size_t workspace_bytes(const AttentionOne& op) const override;
    void gemm(const Gemm& op) override;
    void symmetric_product(const SymmetricProduct& op) override;
    void attention_forward(const AttentionForward& op) override;
    void attention_backward(const AttentionBackward& op) override;
    void attention_one(const AttentionOne& op) override;

    size_t workspace_bytes(const EmbeddingBackward& op) const override;
    size_t workspace_bytes(const RmsNormBackward& op) const override;
    void embedding_forward(const EmbeddingForward& op) override;
    void embedding_backward(const EmbeddingBackward& op) override;
    void rmsnorm_forward(const RmsNormForward& op) override;
    void rmsnorm_backward(const RmsNormBackward& op) override;
    void rope(const Rope& op) override;
    void swiglu_forward(const SwigluForward& op) override;
    void swiglu_backward(const SwigluBackward& op) override;
    void classifier(const Classifier& op) override;

    size_t workspace_bytes(const SumOfSquares& op) const override;
    void sum(const Sum& op) override;
    void sum_of_squares(const SumOfSquares& op) override;
    void clip_factor(const ClipFactor& op) override;

    size_t workspace_bytes(const FrobeniusNormalize& op) const override;
    size_t workspace_bytes(const NewtonSchulz& op) const override;
    size_t workspace_bytes(const RowMomentNormalize& op) const override;
    size_t workspace_bytes(const SchattenDirection& op) const override;
    size_t workspace_bytes(const SingularRange& op) const override;
    size_t workspace_bytes(const DotProducts& op) const override;
    void momentum(const Momentum& op) override;
    void adam(const Adam& op) override;
    void sign(const Sign& op) override;
    void frobenius_normalize(const FrobeniusNormalize& op) override;
    void newton_schulz(const NewtonSchulz& op) override;
    void line_normalize(const LineNormalize& op) override;
    void row_moment_normalize(const RowMomentNormalize& op) override;
    void schatten_direction(const SchattenDirection& op) override;
    void singular_range(const SingularRange& op) override;
    void dot_products(const DotProducts& op) override;
    void step_sizes(const StepSizes& op) override;
    void head_maxima(const HeadMaxima& op) override;
    void qk_clip(const QkClip& op) override;
    double executed_flops(const NewtonSchulz& op) const override;
    void apply(const Apply& op) override;
    void join_weights(const JoinWeights& op) override;
    size_t workspace_bytes(const FusedUpdate& op) const override;
    void fused_update(const FusedUpdate& op) override;
    void spectral_update(const SpectralUpdate& op) override;

  private:
    template <typename T>
    void attention_forward_in(const AttentionForward& op);
    template <typename T>
    void attention_backward_in(const AttentionBackward& op);
    template <typename T>
    void attention_one_in(const AttentionOne& op);
    template <typename T>
    void gemm_in(const Gemm& op);
    template <typename T>
    void symmetric_product_in(const SymmetricProduct& op);
    int newton_schulz_lanes(const NewtonSchulz& op) const;
    Bf16NewtonSchulz bf16_newton_schulz(const NewtonSchulz& op) const;
    size_t newton_schulz_bytes(const NewtonSchulz& op) const;
    double newton_schulz_divisor(const NewtonSchulz& op, const Tensor& tensor, double* parts) const;
    void orthogonalise_bf16(const NewtonSchulz& op, const Tensor& tensor, Scratch& scratch) const;
    template <typename T>
    void schatten_direction_in(const SchattenDirection& op);
    template <typename T>
    void schatten_direction_of(const Tensor& tensor, double p, Scratch& scratch);
    template <typename T>
    void singular_range_of(const SingularRange& op, size_t index);
    template <typename T>
    void orthogonalise(const NewtonSchulz& op, const Tensor& tensor, Scratch& scratch) const;

    void convert(DType to_type, void* to, DType from_type, const void* from, int64_t count) const;
    std::vector<std::chrono::steady_clock::time_point> moments_;
    int threads_;
    Kernels kernels_;
    Blas blas_;
    mutable Bf16Matmul bf16_matmul_;  // keeps what it compiles
    const Bf16Tiles* bf16_tiles_ = bf16_tiles();
};

}  // namespace lmo::cpu
