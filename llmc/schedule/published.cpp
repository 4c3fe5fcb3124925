// delta_star as the published code of arXiv 2602.05813 chooses it. The objective is the one of
// exact_delta_star() but for a factor lr^2, and it is integrated over the whole of [0, delta0] by
// QAGS to an absolute tolerance of 1.49e-8, which is above the size of the integrand itself: the
// "minimum" is as much that of the integration error, and moves with lr and with every digit of the
// first loss. So the operations here follow the published ones one by one, pow() included.
#include <algorithm>
#include <cmath>
#include <limits>

#include "llmc/core/error.h"
#include "llmc/schedule/quadrature.h"
#include "llmc/schedule/schedule.h"

namespace lmo {

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kConstraintTolerance = 1e-10;
constexpr int kCandidates = 500;
constexpr double kCandidateMargin = 0.01;

// Python's x ** 2 is the C library's pow(x, 2), which is not always the rounded x * x; a compiler
// that sees the 2 would put the product in its place.
double square(double x) {
    static const volatile double two = 2.0;
    return std::pow(x, two);
}

// delta / K(delta).
struct Rate {
    double K0, K1, K2;
    double operator()(double x) const { return x / (K0 + K1 * x + K2 * square(x)); }
};

// The published objective at one candidate.
class Objective {
  public:
    Objective(double lr, double div, double delta0, double delta_star, double sharpness)
        : delta_star_(delta_star), delta0_(delta0), sharpness_(sharpness) {
        rate_.K2 = delta0 * (div - 1.0) / (lr * square(delta0 - delta_star));
        rate_.K0 = rate_.K2 * square(delta_star);
        rate_.K1 = 1.0 / lr - 2.0 * rate_.K2 * delta_star;
        peak_ = rate_(delta_star);
        start_ = rate_(delta0);
        valid_ = std::abs(peak_ - lr) <= kConstraintTolerance &&
                 std::abs(start_ - lr / div) <= kConstraintTolerance;
    }

    // Infinite where rounding breaks the conditions that fix the curve.
    double value(DeltaStarMode mode) const {
        if (!valid_) return std::numeric_limits<double>::infinity();
        const Integrand f = [this](double x) { return integrand(x); };
        const QuadratureResult integral =
            mode == DeltaStarMode::gk21 ? gauss_kronrod_21(f, 0.0, delta0_) : qags(f, 0.0, delta0_);
        return integral.value / std::max(std::abs(delta0_), 1e-12);
    }

  private:
    double integrand(double x) const {
        const double distance = x - delta_star_;
        const double weight = std::exp(-(distance * distance) * sharpness_);
        return weight * square(std::abs(rate_(x) - target(x)));
    }
    double target(double x) const {
        if (x < delta_star_) {
            const double angle = kPi * x / delta_star_;
            return peak_ * (1.0 - std::cos(angle)) / 2.0;
        }
        const double slope = (start_ - peak_) / (delta0_ - delta_star_);
        return peak_ + slope * (x - delta_star_);
    }

    double delta_star_, delta0_, sharpness_;
    Rate rate_{};
    double peak_ = 0, start_ = 0;  // rates at delta_star and delta0
    bool valid_ = false;
};

}  // namespace

double published_delta_star(DeltaStarMode mode, double lr, double div, double delta0, double kappa,
                            double sigma_F) {
    div = lr / (lr / div);  // the published code is given the two rates
    const double sharpness = sigma_F / (2.0 * (1.0 / kappa));
    const double first = kCandidateMargin, last = delta0 - kCandidateMargin;
    const double spacing = (last - first) / (kCandidates - 1);
    double best = first, best_objective = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kCandidates; ++i) {
        const double candidate = i == kCandidates - 1 ? last : i * spacing + first;
        const double objective = Objective(lr, div, delta0, candidate, sharpness).value(mode);
        if (objective < best_objective) {
            best = candidate;
            best_objective = objective;
        }
    }
    if (std::isinf(best_objective)) {
        throw Error(
            "adaptive warm-up: no candidate for delta_star meets the published code's conditions "
            "at this optimizer.lr and schedule.warmup.div; use delta_star \"exact\" or a number");
    }
    return best;
}

}  // namespace lmo
