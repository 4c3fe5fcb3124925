#include "llmc/device/timed_backend.h"

#include <algorithm>

#include "llmc/device/reissued_graph.h"

namespace lmo {

namespace {

bool alike(const Tensor& a, const Tensor& b) { return a.dtype == b.dtype && a.shape == b.shape; }

bool alike(const Gemm& x, const Gemm& y) {
    return alike(x.a, y.a) && alike(x.b, y.b) && alike(x.c, y.c) &&
           x.transpose_a == y.transpose_a && x.transpose_b == y.transpose_b && x.alpha == y.alpha &&
           x.beta == y.beta;
}

}  // namespace

std::string to_string(Part part) {
    switch (part) {
        case Part::gemm:
            return "gemm";
        case Part::attention:
            return "attention";
        case Part::classifier:
            return "classifier";
        case Part::elementwise:
            return "elementwise";
        case Part::optimizer:
            return "optimizer";
        case Part::data:
            return "data";
    }
    return "";
}

void TimedBackend::settle() {
    for (const Span& span : spans_) {
        const PartTime time{inner_.seconds_between(span.from, span.to), 1};
        times_[static_cast<size_t>(span.part)] += time;
        if (span.gemm >= 0) gemms_[static_cast<size_t>(span.gemm)].time = time;
    }
    spans_.clear();
    moments_ = 0;
    idle_ = true;
}

const PartTime& TimedBackend::time(Part part) {
    settle();
    return times_[static_cast<size_t>(part)];
}

const std::vector<TimedGemm>& TimedBackend::gemms() {
    settle();
    return gemms_;
}

double TimedBackend::seconds() {
    settle();
    double sum = 0.0;
    for (const PartTime& time : times_) sum += time.seconds;
    return sum;
}

std::vector<TimedGemm> TimedBackend::distinct_gemms() {
    settle();
    std::vector<TimedGemm> distinct;
    for (const TimedGemm& call : gemms_) {
        const auto known = std::find_if(distinct.begin(), distinct.end(), [&](const auto& other) {
            return alike(other.gemm, call.gemm);
        });
        if (known == distinct.end()) {
            distinct.push_back(call);
        } else {
            known->time += call.time;
        }
    }
    return distinct;
}

void TimedBackend::restart() {
    settle();
    times_ = {};
    gemms_.clear();
}

std::unique_ptr<Graph> TimedBackend::capture(std::function<void()> body) {
    if (!timing_) return inner_.capture(std::move(body));
    return std::make_unique<ReissuedGraph>(std::move(body));
}

void TimedBackend::synchronize() {
    inner_.synchronize();
    idle_ = true;
}

// ---- data and elementwise -----------------------------------------------------------------------

void TimedBackend::copy_in(const Tensor& to, const void* host) {
    timed(Part::data, [&] { inner_.copy_in(to, host); });
    idle_ = true;  // it waited
}
void TimedBackend::copy_out(void* host, const Tensor& from) {
    timed(Part::data, [&] { inner_.copy_out(host, from); });
    idle_ = true;
}
void TimedBackend::copy(const Tensor& to, const Tensor& from) {
    timed(Part::elementwise, [&] { inner_.copy(to, from); });
}
void TimedBackend::zero(const Tensor& tensor) {
    timed(Part::elementwise, [&] { inner_.zero(tensor); });
}
void TimedBackend::embedding_forward(const EmbeddingForward& op) {
    timed(Part::elementwise, &Backend::embedding_forward, op);
}
void TimedBackend::embedding_backward(const EmbeddingBackward& op) {
    timed(Part::elementwise, &Backend::embedding_backward, op);
}
void TimedBackend::rmsnorm_forward(const RmsNormForward& op) {
    timed(Part::elementwise, &Backend::rmsnorm_forward, op);
}
void TimedBackend::rmsnorm_backward(const RmsNormBackward& op) {
    timed(Part::elementwise, &Backend::rmsnorm_backward, op);
}
void TimedBackend::rope(const Rope& op) { timed(Part::elementwise, &Backend::rope, op); }
void TimedBackend::swiglu_forward(const SwigluForward& op) {
    timed(Part::elementwise, &Backend::swiglu_forward, op);
}
void TimedBackend::swiglu_backward(const SwigluBackward& op) {
    timed(Part::elementwise, &Backend::swiglu_backward, op);
}

// ---- GEMM, attention, classifier ----------------------------------------------------------------

void TimedBackend::gemm(const Gemm& op) {
    if (!timing_) return inner_.gemm(op);
    gemms_.push_back({op, {}});
    timed(
        Part::gemm, [&] { inner_.gemm(op); }, static_cast<int64_t>(gemms_.size()) - 1);
}
void TimedBackend::attention_forward(const AttentionForward& op) {
    timed(Part::attention, &Backend::attention_forward, op);
}
void TimedBackend::attention_backward(const AttentionBackward& op) {
    timed(Part::attention, &Backend::attention_backward, op);
}
void TimedBackend::attention_one(const AttentionOne& op) {
    timed(Part::attention, &Backend::attention_one, op);
}
void TimedBackend::classifier(const Classifier& op) {
    timed(Part::classifier, &Backend::classifier, op);
}
void TimedBackend::sum(const Sum& op) { timed(Part::classifier, &Backend::sum, op); }

// ---- optimizer ----------------------------------------------------------------------------------

void TimedBackend::sum_of_squares(const SumOfSquares& op) {
    timed(Part::optimizer, &Backend::sum_of_squares, op);
}
void TimedBackend::clip_factor(const ClipFactor& op) {
    timed(Part::optimizer, &Backend::clip_factor, op);
}
void TimedBackend::momentum(const Momentum& op) { timed(Part::optimizer, &Backend::momentum, op); }
void TimedBackend::adam(const Adam& op) { timed(Part::optimizer, &Backend::adam, op); }
void TimedBackend::sign(const Sign& op) { timed(Part::optimizer, &Backend::sign, op); }
void TimedBackend::frobenius_normalize(const FrobeniusNormalize& op) {
    timed(Part::optimizer, &Backend::frobenius_normalize, op);
}
// Only matrix norms multiply a matrix with its own transpose.
void TimedBackend::symmetric_product(const SymmetricProduct& op) {
    timed(Part::optimizer, &Backend::symmetric_product, op);
}
void TimedBackend::newton_schulz(const NewtonSchulz& op) {
    timed(Part::optimizer, &Backend::newton_schulz, op);
}
void TimedBackend::line_normalize(const LineNormalize& op) {
    timed(Part::optimizer, &Backend::line_normalize, op);
}
void TimedBackend::row_moment_normalize(const RowMomentNormalize& op) {
    timed(Part::optimizer, &Backend::row_moment_normalize, op);
}
void TimedBackend::schatten_direction(const SchattenDirection& op) {
    timed(Part::optimizer, &Backend::schatten_direction, op);
}
void TimedBackend::singular_range(const SingularRange& op) {
    timed(Part::optimizer, &Backend::singular_range, op);
}
void TimedBackend::dot_products(const DotProducts& op) {
    timed(Part::optimizer, &Backend::dot_products, op);
}
void TimedBackend::step_sizes(const StepSizes& op) {
    timed(Part::optimizer, &Backend::step_sizes, op);
}
void TimedBackend::head_maxima(const HeadMaxima& op) {
    timed(Part::attention, &Backend::head_maxima, op);
}
void TimedBackend::qk_clip(const QkClip& op) { timed(Part::optimizer, &Backend::qk_clip, op); }
void TimedBackend::apply(const Apply& op) { timed(Part::optimizer, &Backend::apply, op); }
void TimedBackend::join_weights(const JoinWeights& op) {
    timed(Part::optimizer, &Backend::join_weights, op);
}
void TimedBackend::fused_update(const FusedUpdate& op) {
    timed(Part::optimizer, &Backend::fused_update, op);
}
void TimedBackend::spectral_update(const SpectralUpdate& op) {
    timed(Part::optimizer, &Backend::spectral_update, op);
}

// ---- workspace ----------------------------------------------------------------------------------

size_t TimedBackend::workspace_bytes(const Gemm& op) const { return inner_.workspace_bytes(op); }
size_t TimedBackend::workspace_bytes(const SymmetricProduct& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const AttentionForward& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const AttentionBackward& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const AttentionOne& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const EmbeddingBackward& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const RmsNormBackward& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const SumOfSquares& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const FrobeniusNormalize& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const NewtonSchulz& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const RowMomentNormalize& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const SchattenDirection& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const SingularRange& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const DotProducts& op) const {
    return inner_.workspace_bytes(op);
}
size_t TimedBackend::workspace_bytes(const FusedUpdate& op) const {
    return inner_.workspace_bytes(op);
}
double TimedBackend::executed_flops(const NewtonSchulz& op) const {
    return inner_.executed_flops(op);
}

}  // namespace lmo
