// A backend around a backend that finds out where the time goes: every operation is handed on
// between two moments of the device, and counted for its part of a training step. What computes on
// it does not know of it, and gets the same bits.
//
// Nobody waits for the moments until the times are asked for, so that a GPU runs on without gaps.
// Captured operations are issued one by one at each launch: nobody can look inside a graph that
// runs as a whole.
#pragma once

#include <array>
#include <vector>

#include "llmc/device/backend.h"

namespace lmo {

enum class Part {
    gemm,         // products of two matrices, those of the classifier's head included
    attention,    // both passes
    classifier,   // softmax and cross-entropy of the logits, the sum of the losses
    elementwise,  // norms, RoPE, SwiGLU, embedding, copies and zeros on the device
    optimizer,    // norm of the gradients, momentum, Adam, directions, Newton-Schulz, new weights
    data,         // copies between host and device
};
constexpr int kParts = 6;
std::string to_string(Part part);

struct PartTime {
    double seconds = 0.0;
    int64_t calls = 0;

    PartTime& operator+=(const PartTime& other) {
        seconds += other.seconds;
        calls += other.calls;
        return *this;
    }
};

// One call of Gemm, or all that are equal but for the tensors' memory.
struct TimedGemm {
    Gemm gemm;
    PartTime time;
};

class TimedBackend : public Backend {
  public:
    explicit TimedBackend(Backend& inner) : inner_(inner) {}

    // Since the last restart(). These wait for what was issued.
    const PartTime& time(Part part);
    double seconds();                         // of all parts
    const std::vector<TimedGemm>& gemms();    // every call, in order
    std::vector<TimedGemm> distinct_gemms();  // in order of the first call
    void restart();

    // Off: operations are handed on untimed, and graphs are recorded as the inner backend does.
    void set_timing(bool on) { timing_ = on; }

    std::string describe() const override { return inner_.describe(); }
    DType preferred_compute() const override { return inner_.preferred_compute(); }
    DType preferred_newton_schulz() const override { return inner_.preferred_newton_schulz(); }
    bool has_newton_schulz(DType inner) const override { return inner_.has_newton_schulz(inner); }
    bool has_fp64() const override { return inner_.has_fp64(); }
    std::string missing_attention_library() const override {
        return inner_.missing_attention_library();
    }
    bool is_separate() const override { return inner_.is_separate(); }
    double free_bytes() const override { return inner_.free_bytes(); }

    void* allocate(size_t bytes) override { return inner_.allocate(bytes); }
    void release(void* memory) override { inner_.release(memory); }
    void copy_in(const Tensor& to, const void* host) override;
    void copy_out(void* host, const Tensor& from) override;
    void copy(const Tensor& to, const Tensor& from) override;
    void zero(const Tensor& tensor) override;

    std::unique_ptr<Graph> capture(std::function<void()> body) override;
    void synchronize() override;
    void aside(const std::function<void()>& body) override { inner_.aside(body); }
    void reach(size_t milestone) override { inner_.reach(milestone); }
    void await(size_t milestone) override { inner_.await(milestone); }
    bool set_dependent_launch(bool on) override { return inner_.set_dependent_launch(on); }
    void mark(size_t moment) override { inner_.mark(moment); }
    double seconds_between(size_t from, size_t to) override {
        return inner_.seconds_between(from, to);
    }

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
    // A call between two moments of the device. One that follows another at once begins where that
    // ended.
    struct Span {
        Part part;
        size_t from, to;
        int64_t gemm;  // its index, or -1
    };

    void begin() {
        if (idle_) inner_.mark(moments_++);
    }
    void end(Part part, int64_t gemm = -1) {
        inner_.mark(moments_);
        spans_.push_back({part, moments_ - 1, moments_, gemm});
        ++moments_;
        idle_ = !inner_.is_separate();
    }
    template <class Body>
    void timed(Part part, Body body, int64_t gemm = -1) {
        if (!timing_) return body();
        begin();
        body();
        end(part, gemm);
    }
    template <class Operation>
    void timed(Part part, void (Backend::*run)(const Operation&), const Operation& operation) {
        if (!timing_) return (inner_.*run)(operation);
        begin();
        (inner_.*run)(operation);
        end(part);
    }
    void settle();  // times of the spans

    Backend& inner_;
    bool timing_ = true;
    bool idle_ = true;  // the host may have done other things since the last moment
    size_t moments_ = 0;
    std::vector<Span> spans_;
    std::array<PartTime, kParts> times_;
    std::vector<TimedGemm> gemms_;
};

}  // namespace lmo
