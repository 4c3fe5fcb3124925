#include "llmc/smoothness/fit.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <string>

#include "llmc/core/error.h"

namespace lmo {

namespace {

// q in [0, 1], linear between order statistics.
double quantile(std::vector<double> values, double q) {
    std::sort(values.begin(), values.end());
    const double place = q * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(place);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
}

std::vector<SmoothnessPoint> selected(const std::vector<SmoothnessPoint>& points,
                                      const SmoothnessFitOptions& options) {
    std::vector<double> ratios;
    for (const SmoothnessPoint& p : points) ratios.push_back(p.ratio);
    if (ratios.empty()) return {};
    const double low = quantile(ratios, 0.01), high = quantile(ratios, 0.99);
    std::vector<SmoothnessPoint> result;
    for (const SmoothnessPoint& p : points) {
        if (p.ratio < low || p.ratio > high || p.delta <= 0.0) continue;
        if (p.step < options.first_step || p.step > options.last_step) continue;
        result.push_back(p);
    }
    return result;
}

double dot(std::span<const double> a, std::span<const double> b) {
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

using Coefficients = std::array<double, 3>;

// Least squares on three columns by Gram-Schmidt, each column orthogonalised twice, after scaling
// it to unit length: delta^50 has no size in common with 1. None when the columns are dependent.
std::optional<Coefficients> least_squares(std::array<std::vector<double>, 3> columns,
                                          const std::vector<double>& y) {
    std::array<double, 3> scale{};
    std::array<std::array<double, 3>, 3> r{};
    Coefficients solution{};
    for (size_t j = 0; j < 3; ++j) {
        std::vector<double>& q = columns[j];
        double largest = 0.0;
        for (double value : q) largest = std::max(largest, std::fabs(value));
        if (!(largest > 0.0) || !std::isfinite(largest)) return std::nullopt;
        for (double& value : q) value /= largest;
        const double length = std::sqrt(dot(q, q));
        for (double& value : q) value /= length;
        scale[j] = largest * length;
        for (int pass = 0; pass < 2; ++pass) {
            for (size_t i = 0; i < j; ++i) {
                const double part = dot(columns[i], q);
                r[i][j] += part;
                for (size_t k = 0; k < q.size(); ++k) q[k] -= part * columns[i][k];
            }
        }
        r[j][j] = std::sqrt(dot(q, q));
        if (r[j][j] < 1e-12) return std::nullopt;
        for (double& value : q) value /= r[j][j];
        solution[j] = dot(q, y);
    }
    for (size_t j = 3; j-- > 0;) {
        for (size_t i = j + 1; i < 3; ++i) solution[j] -= r[j][i] * solution[i];
        solution[j] /= r[j][j];
    }
    for (size_t j = 0; j < 3; ++j) solution[j] /= scale[j];
    return solution;
}

std::optional<SmoothnessFit> fit_with(const std::vector<SmoothnessPoint>& points, double rho) {
    std::array<std::vector<double>, 3> columns;
    std::vector<double> ratios;
    for (const SmoothnessPoint& p : points) {
        columns[0].push_back(1.0);
        columns[1].push_back(p.delta);
        columns[2].push_back(std::pow(p.delta, rho));
        ratios.push_back(p.ratio);
    }
    const auto solution = least_squares(columns, ratios);
    if (!solution) return std::nullopt;
    SmoothnessFit fit{(*solution)[0],
                      (*solution)[1],
                      (*solution)[2],
                      rho,
                      0.0,
                      0.0,
                      static_cast<int64_t>(points.size())};
    double mean = 0.0, residual = 0.0, total = 0.0, above = 0.0;
    for (double ratio : ratios) mean += ratio / static_cast<double>(ratios.size());
    for (const SmoothnessPoint& p : points) {
        const double error = p.ratio - fit.at(p.delta);
        residual += error * error;
        total += (p.ratio - mean) * (p.ratio - mean);
        above += error > 0.0 ? 1.0 : 0.0;
    }
    fit.r2 = total > 0.0 ? 1.0 - residual / total : 0.0;
    fit.share_above = above / static_cast<double>(points.size());
    return fit;
}

}  // namespace

double SmoothnessFit::at(double delta) const {
    return K0 + K1 * delta + K_rho * std::pow(delta, rho);
}

std::optional<double> SmoothnessFit::delta_star() const {
    if (!(K0 > 0.0) || !(K_rho > 0.0)) return std::nullopt;
    return std::pow(K0 / ((rho - 1.0) * K_rho), 1.0 / rho);
}

SmoothnessFit fit_smoothness(const std::vector<SmoothnessPoint>& points,
                             const SmoothnessFitOptions& options) {
    const std::vector<SmoothnessPoint> chosen = selected(points, options);
    if (chosen.size() < 4) {
        throw Error(std::to_string(chosen.size()) + " of " + std::to_string(points.size()) +
                    " measurements are left to fit K0, K1 and K_rho; expected at least 4: train "
                    "longer, set a smaller smoothness.every, or widen the window");
    }
    constexpr int kTried = 100;
    constexpr double kLowest = 1.05, kHighest = 50.0;
    std::optional<SmoothnessFit> best;
    for (int i = 0; i < (options.rho ? 1 : kTried); ++i) {
        const double rho = options.rho.value_or(
            kLowest + (kHighest - kLowest) * static_cast<double>(i) / (kTried - 1));
        const auto fit = fit_with(chosen, rho);
        if (fit && (!best || fit->r2 > best->r2)) best = fit;
    }
    if (!best) {
        throw Error("the gaps of the " + std::to_string(chosen.size()) +
                    " measurements are too alike to determine K0, K1 and K_rho");
    }
    return *best;
}

}  // namespace lmo
