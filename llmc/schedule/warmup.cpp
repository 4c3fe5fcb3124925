// The curve of the adaptive warm-up, in fp64.
//
// Smoothness model K(delta) = K0 + K1 delta + K2 delta^2 in the loss gap delta = loss - target, and
// the rate delta / K(delta) (arXiv 2602.05813). Three conditions fix the coefficients: the rate is
// lr at delta*, has slope 0 there, and is lr/div at delta0. K1 is normally negative, so the
// quotient cancels; warmup_rate() evaluates the same function as a sum of terms that are not
// negative.
#include <algorithm>

#include "llmc/schedule/schedule.h"

namespace lmo {

namespace {

constexpr double kSmallestGap = 1e-8;

}  // namespace

double warmup_rate(double delta, double lr, double div, double delta0, double delta_star) {
    delta = std::max(delta, kSmallestGap);
    const double distance = (delta - delta_star) / (delta0 - delta_star);
    // The quotient is at most 1 even after rounding, so the rate is never above lr.
    return lr * (delta / (delta + (div - 1.0) * delta0 * distance * distance));
}

WarmupCurve warmup_curve(double lr, double div, double delta0, double delta_star) {
    const double span = delta0 - delta_star;
    const double K2 = delta0 * (div - 1.0) / (lr * span * span);
    return {delta0, delta_star, K2 * delta_star * delta_star, 1.0 / lr - 2.0 * K2 * delta_star, K2};
}

}  // namespace lmo
