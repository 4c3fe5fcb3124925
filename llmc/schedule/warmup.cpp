// The curve of the adaptive warm-up and the choice of its peak, in fp64.
//
// Smoothness model K(delta) = K0 + K1 delta + K2 delta^2 in the loss gap delta = loss - target, and
// the rate delta / K(delta) (arXiv 2602.05813). Three conditions fix the coefficients: the rate is
// lr at delta*, has slope 0 there, and is lr/div at delta0. K1 is normally negative, so the
// quotient cancels; warmup_rate() evaluates the same function as a sum of terms that are not
// negative.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "llmc/core/error.h"
#include "llmc/schedule/schedule.h"

namespace lmo {

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kSmallestGap = 1e-8;
constexpr double kCandidateMargin = 0.01;  // candidates for delta* keep this far from 0 and delta0
constexpr int kCandidates = 500;
constexpr int kNodes = 32;        // of the Gauss-Legendre rule
constexpr int kPanels = 16;       // on each side of delta*
constexpr double kWidths = 12.0;  // standard deviations kept: the weight is exp(-72) beyond

// Gauss-Legendre rule on [-1, 1]: the nodes are the roots of the Legendre polynomial P_n, the
// weights 2 / ((1 - x^2) P_n'(x)^2).
struct GaussLegendre {
    std::array<double, kNodes> x, w;

    GaussLegendre() {
        for (int i = 0; i < kNodes; i++) {
            double root = std::cos(kPi * (i + 0.75) / (kNodes + 0.5)), slope = 0.0;
            // Newton: the start is within O(n^-2) of its root; 6 steps are past rounding, and one
            // more costs nothing.
            for (int iteration = 0; iteration < 7; iteration++) {
                double p = root, previous = 1.0;  // P_1 and P_0
                for (int n = 2; n <= kNodes; n++) {
                    const double next = ((2 * n - 1) * root * p - (n - 1) * previous) / n;
                    previous = p;
                    p = next;
                }
                slope = kNodes * (root * p - previous) / (root * root - 1.0);
                root -= p / slope;
            }
            x[i] = root;
            w[i] = 2.0 / ((1.0 - root * root) * slope * slope);
        }
    }

    // Integral of f over [a, b], by kPanels equal panels.
    template <class F>
    double integrate(const F& f, double a, double b) const {
        const double half = 0.5 * (b - a) / kPanels;
        double sum = 0.0;
        for (int panel = 0; panel < kPanels; panel++) {
            const double centre = a + (2 * panel + 1) * half;
            for (int i = 0; i < kNodes; i++) sum += w[i] * f(centre + half * x[i]);
        }
        return half * sum;
    }
};

// The distance J of the curve with its peak at delta_star to the target shape: a half-cosine from 0
// up to the peak, then a line down to 1/div at delta0. Everything is in units of lr, so that J and
// its minimiser do not depend on lr. The weight has standard deviation 1/sqrt(sigma_F kappa) around
// the peak, which may be thousands of times narrower than delta0: each side is integrated on its
// own (the target has a kink at the peak) and over the weight's support only.
double peak_objective(const GaussLegendre& rule, double delta0, double delta_star, double div,
                      double sharpness) {
    const auto weighted_square = [&](double x, double target) {
        const double error = warmup_rate(x, 1.0, div, delta0, delta_star) - target;
        const double distance = x - delta_star;
        return std::exp(-0.5 * sharpness * distance * distance) * error * error;
    };
    const auto below = [&](double x) {
        return weighted_square(x, 0.5 * (1.0 - std::cos(kPi * x / delta_star)));
    };
    const auto above = [&](double x) {
        const double way_down = (x - delta_star) / (delta0 - delta_star);
        return weighted_square(x, 1.0 + (1.0 / div - 1.0) * way_down);
    };
    const double reach = kWidths / std::sqrt(sharpness);
    return (rule.integrate(below, std::max(0.0, delta_star - reach), delta_star) +
            rule.integrate(above, delta_star, std::min(delta0, delta_star + reach))) /
           delta0;
}

}  // namespace

double warmup_rate(double delta, double lr, double div, double delta0, double delta_star) {
    delta = std::max(delta, kSmallestGap);
    const double distance = (delta - delta_star) / (delta0 - delta_star);
    // The quotient is at most 1 even after rounding, so the rate is never above lr.
    return lr * (delta / (delta + (div - 1.0) * delta0 * distance * distance));
}

double exact_delta_star(double delta0, double div, double kappa, double sigma_F) {
    if (!(delta0 > 2 * kCandidateMargin)) {
        throw Error("adaptive warm-up: the first loss gap is " + std::to_string(delta0) +
                    ", but delta_star \"exact\" needs more than 0.02; lower "
                    "schedule.warmup.target_loss");
    }
    const GaussLegendre rule;
    const double first = kCandidateMargin, last = delta0 - kCandidateMargin;
    const double spacing = (last - first) / (kCandidates - 1);
    double best = first, best_objective = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kCandidates; i++) {
        const double candidate = i == kCandidates - 1 ? last : first + i * spacing;
        const double objective = peak_objective(rule, delta0, candidate, div, sigma_F * kappa);
        if (objective < best_objective) {
            best = candidate;
            best_objective = objective;
        }
    }
    return best;
}

WarmupCurve warmup_curve(double lr, double div, double delta0, double delta_star) {
    const double span = delta0 - delta_star;
    const double K2 = delta0 * (div - 1.0) / (lr * span * span);
    return {delta0, delta_star, K2 * delta_star * delta_star, 1.0 / lr - 2.0 * K2 * delta_star, K2};
}

}  // namespace lmo
