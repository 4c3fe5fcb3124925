// What a group's plain values mean: which parameters it matches, the radius of a shape.
#include "llmc/optim/config.h"

#include <algorithm>
#include <cmath>

namespace lmo {

namespace {

// Shell pattern: * is any text, ? any character. On a mismatch the last star takes one character
// more, so the time is bounded by the product of the lengths.
bool matches_pattern(const std::string& pattern, const std::string& text) {
    constexpr size_t none = std::string::npos;
    size_t p = 0, t = 0, star = none, resume = 0;
    while (t < text.size()) {
        if (p < pattern.size() && pattern[p] == '*') {
            star = p++;
            resume = t;
        } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
            ++p;
            ++t;
        } else if (star != none) {
            p = star + 1;
            t = ++resume;
        } else {
            return false;
        }
    }
    while (p < pattern.size() && pattern[p] == '*') ++p;
    return p == pattern.size();
}

}  // namespace

bool GroupMatch::matches(const Parameter& parameter) const {
    return (!role || *role == parameter.role) &&
           (name.empty() || matches_pattern(name, parameter.name));
}

std::string to_string(const GroupMatch& match) {
    std::string text = match.role ? "role " + to_string(*match.role) : "any role";
    if (!match.name.empty()) text += ", name \"" + match.name + "\"";
    return text;
}

std::string to_string(MomentumType type) {
    switch (type) {
        case MomentumType::none:
            return "none";
        case MomentumType::ema:
            return "ema";
        case MomentumType::heavy_ball:
            return "heavy_ball";
        case MomentumType::nesterov:
            return "nesterov";
        case MomentumType::nesterov_ema:
            return "nesterov_ema";
        case MomentumType::lion:
            return "lion";
        case MomentumType::adam:
            return "adam";
        case MomentumType::gradient:
            return "gradient";
    }
    return "unknown";
}

bool is_sum_momentum(MomentumType type) {
    return type == MomentumType::heavy_ball || type == MomentumType::nesterov;
}

bool OptimizerConfig::keeps_gradients() const {
    return std::any_of(groups.begin(), groups.end(), [](const GroupConfig& group) {
        return group.momentum.type == MomentumType::gradient;
    });
}

double RadiusConfig::value(const Shape& shape) const {
    const double m = static_cast<double>(shape.rows()), n = static_cast<double>(shape.columns());
    switch (rule) {
        case RadiusRule::one:
            break;
        case RadiusRule::sqrt_max_1_ratio:
            return factor * std::sqrt(std::max(1.0, m / n));
        case RadiusRule::sqrt_ratio:
            return factor * std::sqrt(m / n);
        case RadiusRule::sqrt_max:
            return factor * std::sqrt(std::max(m, n));
        case RadiusRule::sqrt_rows:
            return factor * std::sqrt(m);
        case RadiusRule::sqrt_columns:
            return factor * std::sqrt(n);
        case RadiusRule::sqrt_count:
            return factor * std::sqrt(m * n);
        case RadiusRule::inverse_columns:
            return factor / n;
        case RadiusRule::inverse_sqrt_columns:
            return factor / std::sqrt(n);
    }
    return factor;
}

}  // namespace lmo
