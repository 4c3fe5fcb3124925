// The fit of (L0, L1): a convex function of two variables, quadratic where the set of points above
// the line does not change. Newton's method on it: weighted least squares until that set stays.
#include <algorithm>
#include <cmath>

#include "llmc/core/error.h"
#include "llmc/smoothness/fit.h"

namespace lmo {

namespace {

constexpr double kAbove = 5.0;  // extra weight of points above the line
constexpr int kMostSteps = 200;

struct Line {
    double L0, L1;
};

double weight(const Line& line, const LayerPoint& p) {
    return p.ratio > line.L0 + line.L1 * p.dual ? 1.0 + kAbove : 1.0;
}

double objective(const Line& line, const std::vector<LayerPoint>& points) {
    double sum = 0.0;
    for (const LayerPoint& p : points) {
        const double rest = p.ratio - line.L0 - line.L1 * p.dual;
        sum += weight(line, p) * rest * rest;
    }
    return sum;
}

// Weighted least squares with L0, L1 >= 0; the weights are those of `from`.
Line least_squares(const Line& from, const std::vector<LayerPoint>& points) {
    double w = 0, wd = 0, wdd = 0, wk = 0, wdk = 0;
    for (const LayerPoint& p : points) {
        const double s = weight(from, p);
        w += s;
        wd += s * p.dual;
        wdd += s * p.dual * p.dual;
        wk += s * p.ratio;
        wdk += s * p.dual * p.ratio;
    }
    const Line constant{wk / w, 0.0}, proportional{0.0, wdd > 0.0 ? wdk / wdd : 0.0};
    const double determinant = w * wdd - wd * wd;
    if (determinant > 1e-12 * w * wdd) {
        const Line free{(wdd * wk - wd * wdk) / determinant, (w * wdk - wd * wk) / determinant};
        if (free.L0 >= 0.0 && free.L1 >= 0.0) return free;
    }
    const auto cost = [&](const Line& line) {
        double sum = 0.0;
        for (const LayerPoint& p : points) {
            const double rest = p.ratio - line.L0 - line.L1 * p.dual;
            sum += weight(from, p) * rest * rest;
        }
        return sum;
    };
    return cost(constant) < cost(proportional) ? constant : proportional;
}

}  // namespace

LayerFit fit_layer(const std::vector<LayerPoint>& points) {
    if (points.size() < 2) {
        throw Error("a fit of L0 and L1 needs at least 2 measurements, " +
                    std::to_string(points.size()) + " can be used");
    }
    Line line = least_squares({0.0, 0.0}, points);
    for (int step = 0; step < kMostSteps; ++step) {
        Line next = least_squares(line, points);
        // Shorter steps where the set of points above changes so much that the objective grows.
        for (int halving = 0; halving < 40 && objective(next, points) > objective(line, points);
             ++halving) {
            next = {0.5 * (next.L0 + line.L0), 0.5 * (next.L1 + line.L1)};
        }
        if (!(objective(next, points) < objective(line, points))) break;
        line = next;
    }
    int64_t above = 0;
    for (const LayerPoint& p : points) above += p.ratio > line.L0 + line.L1 * p.dual ? 1 : 0;
    return {line.L0, line.L1, static_cast<double>(above) / static_cast<double>(points.size())};
}

}  // namespace lmo
