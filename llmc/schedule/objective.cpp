// The choice of the peak of the adaptive warm-up by its objective, in fp64 (dev/docs/objective.md).
#include "llmc/schedule/objective.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "llmc/core/error.h"
#include "llmc/schedule/schedule.h"

namespace lmo {

namespace {

constexpr double kPi = 3.14159265358979323846;
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
// its minimiser do not depend on lr. The weight has standard deviation 1/sqrt(sharpness) around the
// peak (sharpness 0: no weight), which may be thousands of times narrower than delta0: each side is
// integrated on its own (the target has a kink at the peak) and over the weight's support only.
double objective_at(const GaussLegendre& rule, double delta0, double delta_star, double div,
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

PeakObjective peak_objective(double delta0, double div, double sharpness) {
    if (!(delta0 > 2 * kCandidateMargin)) {
        throw Error("adaptive warm-up: the first loss gap is " + std::to_string(delta0) +
                    ", but delta_star \"exact\" needs more than 0.02; lower "
                    "schedule.warmup.target_loss");
    }
    const GaussLegendre rule;
    const double first = kCandidateMargin, last = delta0 - kCandidateMargin;
    const double spacing = (last - first) / (kCandidates - 1);
    PeakObjective objective;
    for (int i = 0; i < kCandidates; i++) {
        const double candidate = i == kCandidates - 1 ? last : first + i * spacing;
        objective.delta_star.push_back(candidate);
        objective.J.push_back(objective_at(rule, delta0, candidate, div, sharpness));
    }
    return objective;
}

size_t PeakObjective::chosen() const {
    return static_cast<size_t>(std::min_element(J.begin(), J.end()) - J.begin());
}

std::vector<size_t> PeakObjective::minima() const {
    std::vector<size_t> places;
    for (size_t i = 0; i < J.size(); i++) {
        const bool falls = i == 0 || J[i] < J[i - 1];
        if (falls && (i + 1 == J.size() || J[i] <= J[i + 1])) places.push_back(i);
    }
    return places;
}

double exact_delta_star(double delta0, double div, double kappa, double sigma_F) {
    const PeakObjective objective = peak_objective(delta0, div, sigma_F * kappa);
    return objective.delta_star[objective.chosen()];
}

// Without the weight the objective is one of delta_star/delta0 and div alone. A scan brackets its
// smallest value, a golden-section search refines it: on the grid itself the choice would move in
// steps.
double unweighted_delta_star(double delta0, double div) {
    constexpr int kScan = 200;
    constexpr double kGolden = 0.61803398874989485;
    const GaussLegendre rule;
    const auto objective = [&](double x) { return objective_at(rule, 1.0, x, div, 0.0); };
    int best = 0;
    double smallest = std::numeric_limits<double>::infinity();
    for (int i = 1; i < kScan; i++) {
        const double value = objective(double(i) / kScan);
        if (value < smallest) {
            best = i;
            smallest = value;
        }
    }
    double low = double(best - 1) / kScan, high = double(best + 1) / kScan;
    double left = high - kGolden * (high - low), right = low + kGolden * (high - low);
    double at_left = objective(left), at_right = objective(right);
    while (high - low > 1e-9) {
        if (at_left < at_right) {
            high = right;
            right = left;
            at_right = at_left;
            left = high - kGolden * (high - low);
            at_left = objective(left);
        } else {
            low = left;
            left = right;
            at_left = at_right;
            right = low + kGolden * (high - low);
            at_right = objective(right);
        }
    }
    return delta0 * 0.5 * (low + high);
}

}  // namespace lmo
