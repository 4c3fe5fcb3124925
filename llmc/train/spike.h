// Loss spikes: is the loss of an update far above its recent past, and which tensor's gradient grew
// most? Compared are the last 64 losses (never fewer than 16): with their median m and the median d
// of |loss - m|, a loss is a spike when
//   loss - m > threshold * max(1.4826 d, 0.005 |m|).
// 1.4826 d estimates the standard deviation of normal noise and, like m, is not moved by a few
// outliers; the other term keeps losses that barely differ quiet. A gradient is compared with its
// own mean, in which every update counts 31/32 of the one after it.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace lmo {

struct Spike {
    double expected;     // m
    int tensor = -1;     // index of the gradient that is largest over its mean; -1: all means are 0
    double ratio = 0.0;  // that quotient
};

class SpikeDetector {
  public:
    // threshold 0 switches it off.
    SpikeDetector(double threshold, int tensors);

    // Takes in the loss of an applied update and the norm of each tensor's gradient, all finite. A
    // spike is told once, at its first update.
    std::optional<Spike> observe(double loss, const std::vector<double>& gradient_norms);

    // For state.json; null when switched off. Restoring null begins anew.
    nlohmann::json state() const;
    void restore(const nlohmann::ordered_json& state);

  private:
    std::optional<double> expected_below(double loss) const;

    double threshold_;
    std::vector<double> losses_;  // the newest last
    std::vector<double> means_;   // of each gradient; empty before the first update
    size_t tensors_;
    bool in_spike_ = false;
};

}  // namespace lmo
