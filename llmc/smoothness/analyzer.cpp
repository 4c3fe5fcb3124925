#include "llmc/smoothness/analyzer.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lmo {

namespace {

std::vector<double> to_host(Backend& backend, const Tensor& tensor) {
    std::vector<double> values(static_cast<size_t>(tensor.count()));
    if (tensor.dtype == DType::f64) {
        backend.copy_out(values.data(), tensor);
        return values;
    }
    assert(tensor.dtype == DType::f32);
    std::vector<float> single(values.size());
    backend.copy_out(single.data(), tensor);
    std::copy(single.begin(), single.end(), values.begin());
    return values;
}

// NaN where a value is not finite: a norm then means nothing, and training says what is wrong.
bool all_finite(const std::vector<double>& values) {
    return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
}

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

}  // namespace

double SmoothnessSample::weight_change() const {
    double largest = 0.0;
    for (const Layer& layer : layers) {
        if (!(layer.weight_change <= largest)) largest = layer.weight_change;  // NaN stays
        if (std::isnan(largest)) break;
    }
    return largest;
}

double SmoothnessSample::gradient_change() const {
    double sum = 0.0;
    for (const Layer& layer : layers) sum += layer.gradient_change;
    return sum;
}

double SmoothnessSample::noise_change() const {
    double sum = 0.0;
    for (const Layer& layer : layers) sum += layer.noise_change;
    return sum;
}

SmoothnessAnalyzer::SmoothnessAnalyzer(Backend& backend, Backend& host, std::unique_ptr<Norm> norm,
                                       const ParameterList& parameters)
    : backend_(backend), host_(host), norm_(std::move(norm)) {
    for (const ParameterBlock& block : parameters.blocks(true)) {
        if (block.shape.rank() == 2) blocks_.push_back(block);
    }
    weights_.resize(blocks_.size());
    gradients_.resize(blocks_.size());
}

std::vector<double> SmoothnessAnalyzer::change(const ParameterBlock& block, const Tensor& now,
                                               const std::vector<double>& then) const {
    assert(static_cast<int64_t>(then.size()) == block.shape.count());
    std::vector<double> difference = to_host(backend_, now);
    for (size_t i = 0; i < then.size(); ++i) difference[i] -= then[i];
    return difference;
}

double SmoothnessAnalyzer::primal(const std::vector<double>& x, const ParameterBlock& block) const {
    return all_finite(x) ? norm_->primal(host_, x, block.shape) : kNaN;
}

double SmoothnessAnalyzer::dual(const std::vector<double>& x, const ParameterBlock& block) const {
    return all_finite(x) ? norm_->dual(host_, x, block.shape) : kNaN;
}

void SmoothnessAnalyzer::before(const ParameterBuffer& weights, const ParameterBuffer& gradients) {
    for (size_t i = 0; i < blocks_.size(); ++i) {
        weights_[i] = to_host(backend_, weights[blocks_[i]]);
        gradients_[i] = to_host(backend_, gradients[blocks_[i]]);
    }
}

void SmoothnessAnalyzer::after(const ParameterBuffer& weights, const ParameterBuffer& gradients) {
    sample_.layers.clear();
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const ParameterBlock& block = blocks_[i];
        const std::vector<double> step = change(block, weights[block], weights_[i]);
        const std::vector<double> turn = change(block, gradients[block], gradients_[i]);
        sample_.layers.push_back({block.name, primal(step, block), dual(turn, block), 0.0});
        gradients_[i] = to_host(backend_, gradients[block]);
    }
}

SmoothnessSample SmoothnessAnalyzer::other_batch(const ParameterBuffer& gradients) {
    assert(sample_.layers.size() == blocks_.size() && "after() comes first");
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const std::vector<double> noise = change(blocks_[i], gradients[blocks_[i]], gradients_[i]);
        sample_.layers[i].noise_change = dual(noise, blocks_[i]);
    }
    return sample_;
}

}  // namespace lmo
