#include "llmc/train/spike.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "llmc/core/error.h"

namespace lmo {

namespace {

constexpr size_t kWindow = 64, kLeast = 16;
constexpr double kToDeviation = 1.4826;  // median of absolute differences to standard deviation
constexpr double kLeastDeviation = 0.005;
constexpr double kShareOfMean = 1.0 / 32;

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    if (values.size() % 2) return *middle;
    return 0.5 * (*middle + *std::max_element(values.begin(), middle));
}

}  // namespace

SpikeDetector::SpikeDetector(double threshold, int tensors)
    : threshold_(threshold), tensors_(static_cast<size_t>(tensors)) {}

// The expected loss, when `loss` is far above it.
std::optional<double> SpikeDetector::expected_below(double loss) const {
    if (losses_.size() < kLeast) return {};
    const double middle = median(losses_);
    std::vector<double> distances;
    for (const double past : losses_) distances.push_back(std::abs(past - middle));
    const double deviation =
        std::max(kToDeviation * median(distances), kLeastDeviation * std::abs(middle));
    if (!(loss - middle > threshold_ * deviation)) return {};
    return middle;
}

std::optional<Spike> SpikeDetector::observe(double loss,
                                            const std::vector<double>& gradient_norms) {
    if (threshold_ == 0.0) return {};
    assert(gradient_norms.size() == tensors_);
    const std::optional<double> expected = expected_below(loss);
    std::optional<Spike> spike;
    if (expected && !in_spike_) {
        spike = Spike{*expected};
        for (size_t i = 0; i < means_.size(); ++i) {
            const double ratio = means_[i] > 0.0 ? gradient_norms[i] / means_[i] : 0.0;
            if (ratio <= spike->ratio) continue;
            spike->ratio = ratio;
            spike->tensor = static_cast<int>(i);
        }
    }
    in_spike_ = expected.has_value();
    if (losses_.size() == kWindow) losses_.erase(losses_.begin());
    losses_.push_back(loss);
    if (means_.empty()) means_ = gradient_norms;
    for (size_t i = 0; i < tensors_; ++i) {
        means_[i] += kShareOfMean * (gradient_norms[i] - means_[i]);
    }
    return spike;
}

nlohmann::json SpikeDetector::state() const {
    if (threshold_ == 0.0) return nullptr;
    return {{"losses", losses_}, {"gradient_means", means_}, {"in_spike", in_spike_}};
}

void SpikeDetector::restore(const nlohmann::ordered_json& state) {
    losses_.clear();
    means_.clear();
    in_spike_ = false;
    if (threshold_ == 0.0 || state.is_null()) return;
    losses_ = state.at("losses").get<std::vector<double>>();
    means_ = state.at("gradient_means").get<std::vector<double>>();
    in_spike_ = state.at("in_spike");
    if (means_.size() != tensors_ && !means_.empty()) {
        throw Error("state.json: spike.gradient_means has " + std::to_string(means_.size()) +
                    " numbers, the model has " + std::to_string(tensors_) + " tensors");
    }
}

}  // namespace lmo
