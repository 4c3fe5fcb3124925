#include "llmc/smoothness/analyzer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "llmc/core/split_float.h"

namespace lmo {

namespace {

std::vector<double> read_split(Backend& backend, const Tensor& upper, const Tensor& lower) {
    std::vector<double> values(static_cast<size_t>(upper.count()));
    std::vector<uint16_t> high(values.size());
    std::vector<int16_t> low(values.size());
    backend.copy_out(high.data(), upper);
    backend.copy_out(low.data(), lower);
    for (size_t i = 0; i < values.size(); ++i) values[i] = join_float({high[i], low[i]});
    return values;
}

std::vector<double> read_back(Backend& backend, const Tensor& tensor) {
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

using Values = std::vector<std::vector<double>>;

// The parameters of a block one after another; minus those of `then`, if given.
std::vector<double> of_block(const ParameterBlock& block, const Values& now,
                             const Values* then = nullptr) {
    std::vector<double> values;
    for (int i = block.first; i < block.first + block.count; ++i) {
        const size_t index = static_cast<size_t>(i);
        for (size_t j = 0; j < now[index].size(); ++j) {
            values.push_back(now[index][j] - (then ? (*then)[index][j] : 0.0));
        }
    }
    return values;
}

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
                                       const ParameterList& parameters,
                                       std::vector<BlockNorm> blocks)
    : backend_(backend), host_(host), norm_(std::move(norm)), blocks_(std::move(blocks)) {
    for (const ParameterBlock& block : parameters.blocks(true)) {
        if (block.shape.rank() == 2) matrices_.push_back(block);
    }
}

Values SmoothnessAnalyzer::to_host(const ParameterBuffer& buffer,
                                   const ParameterBuffer& remainders) const {
    Values values;
    for (int i = 0; i < buffer.list->size(); ++i) {
        values.push_back(remainders.flat.empty() ? read_back(backend_, buffer[i])
                                                 : read_split(backend_, buffer[i], remainders[i]));
    }
    return values;
}

double SmoothnessAnalyzer::primal(const Norm& norm, const std::vector<double>& x,
                                  const Shape& shape) const {
    return all_finite(x) ? norm.primal(host_, x, shape) : kNaN;
}

double SmoothnessAnalyzer::dual(const Norm& norm, const std::vector<double>& x,
                                const Shape& shape) const {
    return all_finite(x) ? norm.dual(host_, x, shape) : kNaN;
}

void SmoothnessAnalyzer::before(const ParameterBuffer& weights, const ParameterBuffer& gradients,
                                const ParameterBuffer& remainders) {
    weights_ = to_host(weights, remainders);
    first_gradients_ = to_host(gradients);
}

void SmoothnessAnalyzer::after(const ParameterBuffer& weights, const ParameterBuffer& gradients,
                               const ParameterBuffer& remainders) {
    const Values now = to_host(weights, remainders);
    gradients_ = to_host(gradients);
    sample_ = {};
    for (const ParameterBlock& block : matrices_) {
        sample_.layers.push_back(
            {block.name, primal(*norm_, of_block(block, now, &weights_), block.shape),
             dual(*norm_, of_block(block, gradients_, &first_gradients_), block.shape), 0.0});
    }
    for (const auto& [block, norm, radius] : blocks_) {
        const double moved = primal(*norm, of_block(block, now, &weights_), block.shape);
        const double turned =
            dual(*norm, of_block(block, gradients_, &first_gradients_), block.shape);
        sample_.blocks.push_back({block.name, moved / radius,
                                  radius * dual(*norm, of_block(block, gradients_), block.shape),
                                  radius * turned, 0.0});
    }
}

SmoothnessSample SmoothnessAnalyzer::other_batch(const ParameterBuffer& gradients) {
    assert(sample_.layers.size() == matrices_.size() && "after() comes first");
    const Values other = to_host(gradients);
    for (size_t i = 0; i < matrices_.size(); ++i) {
        const ParameterBlock& block = matrices_[i];
        sample_.layers[i].noise_change =
            dual(*norm_, of_block(block, other, &gradients_), block.shape);
    }
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const auto& [block, norm, radius] = blocks_[i];
        sample_.blocks[i].other_change =
            radius * dual(*norm, of_block(block, other, &first_gradients_), block.shape);
    }
    return sample_;
}

}  // namespace lmo
