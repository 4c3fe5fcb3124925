// Least-squares fit of measured smoothness to K(delta) = K0 + K1 delta + K_rho delta^rho, the model
// behind the adaptive warm-up (arXiv 2602.05813, sections 3 and 5).
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace lmo {

struct SmoothnessPoint {
    int64_t step;
    double delta, ratio;  // loss above the target, and K there
};

struct SmoothnessFitOptions {
    std::optional<double> rho = 2.0;  // none: the best of 100 values from 1.05 to 50
    int64_t first_step = 0, last_step = std::numeric_limits<int64_t>::max();  // the window
};

struct SmoothnessFit {
    double K0, K1, K_rho, rho;
    double r2;           // 1 - residual over total sum of squares
    double share_above;  // of the points: those above the curve
    int64_t points;      // that entered the fit

    double at(double delta) const;
    // Where delta / K(delta), the warm-up's rate, is largest: (K0 / ((rho-1) K_rho))^(1/rho). None
    // when K0 or K_rho is not positive: the rate then has no such peak.
    std::optional<double> delta_star() const;
};

// Drops the points whose ratio lies outside the 1st to 99th percentile (interpolated linearly),
// those at or below the target, and those outside the window, and fits the rest. Throws Error for fewer than 4 points, or points
// that do not determine the curve.
SmoothnessFit fit_smoothness(const std::vector<SmoothnessPoint>& points,
                             const SmoothnessFitOptions& options);

// (L0, L1)-smoothness of a block: K = L0 + L1 d, with d the dual norm of its gradient (arXiv
// 2505.13416, Assumption 1).
struct LayerPoint {
    double dual, ratio;  // d and K there
};
struct LayerFit {
    double L0, L1;
    double share_above;  // of the points: those above the line
};

// Minimises sum (L0 + L1 d - K)^2 + 5 sum max(0, K - (L0 + L1 d))^2 over L0, L1 >= 0, as the
// published estimates do (algorithms.md 7). Throws Error for fewer than 2 points.
LayerFit fit_layer(const std::vector<LayerPoint>& points);

}  // namespace lmo
