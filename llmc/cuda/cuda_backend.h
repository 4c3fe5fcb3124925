// A GPU as a backend: llmc/device/backend.h on device memory, one stream, kernels of our own and
// cuBLASLt for matrix products.
//
// Operations are in a file a family, each next to its kernels. All work is issued on one stream, so
// it runs in order; copy_out and synchronize wait. A second stream is for collectives and what is
// issued aside; events join the two. Sums have fixed borders and a fixed order, so
// equal inputs give equal bits on equal devices and libraries. compute is f32 or bf16.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <optional>
#include <vector>

#include "llmc/cuda/blas.h"
#include "llmc/cuda/cudnn_attention.h"
#include "llmc/cuda/staging.h"
#include "llmc/cuda/stream.h"
#include "llmc/cuda/symmetric_choice.h"
#include "llmc/device/backend.h"

namespace lmo::cuda {

class CudaBackend : public Backend {
  public:
    // Error where there is no usable device, UsageError where there are too few.
    explicit CudaBackend(const LocalRank& rank = {});
    ~CudaBackend() override;
    CudaBackend(const CudaBackend&) = delete;
    CudaBackend& operator=(const CudaBackend&) = delete;

    std::string describe() const override;
    DType preferred_compute() const override { return DType::bf16; }
    DType preferred_newton_schulz() const override { return DType::f16; }
    bool has_newton_schulz(DType inner) const override { return inner != DType::f64; }
    bool has_fp64() const override { return false; }
    std::string missing_attention_library() const override;
    bool is_separate() const override { return true; }
    double free_bytes() const override;

    void* allocate(size_t bytes) override;
    void release(void* memory) override;
    void copy_in(const Tensor& to, const void* host) override;
    void copy_out(void* host, const Tensor& from) override;
    void copy(const Tensor& to, const Tensor& from) override;
    void zero(const Tensor& tensor) override;

    std::unique_ptr<Graph> capture(std::function<void()> body) override;
    void synchronize() override;
    void aside(const std::function<void()>& body) override;
    void reach(size_t milestone) override;
    void await(size_t milestone) override;
    bool set_dependent_launch(bool on) override;
    void mark(size_t moment) override;
    double seconds_between(size_t from, size_t to) override;

    std::string device_id() const override;
    std::string make_communicator_id() override;
    std::unique_ptr<Communicator> connect(const std::string& id, int rank, int ranks) override;

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
    size_t workspace_bytes(const DotProducts& op) const override;
    void sum(const Sum& op) override;
    void sum_of_squares(const SumOfSquares& op) override;
    void dot_products(const DotProducts& op) override;
    void clip_factor(const ClipFactor& op) override;

    size_t workspace_bytes(const FrobeniusNormalize& op) const override;
    size_t workspace_bytes(const NewtonSchulz& op) const override;
    size_t workspace_bytes(const RowMomentNormalize& op) const override;
    size_t workspace_bytes(const SchattenDirection& op) const override;
    size_t workspace_bytes(const SingularRange& op) const override;
    void momentum(const Momentum& op) override;
    void adam(const Adam& op) override;
    void sign(const Sign& op) override;
    void frobenius_normalize(const FrobeniusNormalize& op) override;
    void newton_schulz(const NewtonSchulz& op) override;
    double executed_flops(const NewtonSchulz& op) const override;
    void line_normalize(const LineNormalize& op) override;
    void row_moment_normalize(const RowMomentNormalize& op) override;
    void schatten_direction(const SchattenDirection& op) override;
    void singular_range(const SingularRange& op) override;
    void step_sizes(const StepSizes& op) override;
    void head_maxima(const HeadMaxima& op) override;
    void qk_clip(const QkClip& op) override;
    void apply(const Apply& op) override;
    void join_weights(const JoinWeights& op) override;
    size_t workspace_bytes(const FusedUpdate& op) const override;
    void fused_update(const FusedUpdate& op) override;
    void spectral_update(const SpectralUpdate& op) override;

    // For programs that launch kernels themselves.
    int capability() const { return 10 * device_.major + device_.minor; }  // 90: 9.0
    Stream stream() const { return stream_; }
    // Newton-Schulz takes this kernel whatever the table says; none: the table's again.
    void force_symmetric_kernel(std::optional<SymmetricKernel> kernel) { forced_ = kernel; }

  private:
    SymmetricKernel symmetric_kernel(DType type, int64_t n) const {
        return forced_ ? *forced_ : choose_symmetric_kernel(capability(), type, n);
    }
    // Converts element by element (cast.cu).
    void convert(const Tensor& to, const Tensor& from);
    CudnnAttention& cudnn() const;  // Error where there is none
    cudaEvent_t event_of(size_t milestone);

    Stream stream_;           // where operations are issued now
    Stream second_;           // the other one
    bool recording_ = false;  // a graph
    cudaDeviceProp device_{};
    std::vector<cudaEvent_t> moments_, milestones_;
    Staging staging_;
    std::unique_ptr<Blas> blas_;
    std::optional<SymmetricKernel> forced_;
    mutable std::unique_ptr<CudnnAttention> cudnn_;  // opened when it is first asked for
};

}  // namespace lmo::cuda
