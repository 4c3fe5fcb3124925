// Matrices with known spectra for dev/bench/newton_schulz.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "llmc/core/tensor.h"
#include "llmc/train/bench_optimizer.h"

namespace lmo {

// Normally distributed elements or, harder, singular values that fall from 1 to 1e-3.
enum class Spectrum { normal, decaying };

// x = x - 2 v (v . x) / |v|^2, with `stride` from one element of x to the next.
inline void reflect(const float* v, int64_t count, double* x, int64_t stride) {
    double dot = 0, squares = 0;
    for (int64_t i = 0; i < count; ++i) {
        dot += v[i] * x[i * stride];
        squares += static_cast<double>(v[i]) * v[i];
    }
    for (int64_t i = 0; i < count; ++i) x[i * stride] -= 2 * dot / squares * v[i];
}

inline std::vector<float> matrix_of(const Shape& shape, Spectrum spectrum) {
    const int64_t m = shape[0], n = shape[1];
    const std::vector<float> values = normal_values(m * n);
    if (spectrum == Spectrum::normal) return values;
    // Reflections I - 2 v v^T / |v|^2 by parts of the noise, on each side of a diagonal.
    std::vector<double> x(values.size(), 0.0);
    const int64_t k = std::min(m, n);
    for (int64_t i = 0; i < k; ++i) {
        const double at = static_cast<double>(i) / static_cast<double>(std::max<int64_t>(k - 1, 1));
        x[static_cast<size_t>(i * n + i)] = std::pow(1e-3, at);
    }
    for (int turn = 0; turn < 3; ++turn) {
        const float* v = values.data() + turn * std::max(m, n);
        for (int64_t i = 0; i < m; ++i) reflect(v, n, x.data() + i * n, 1);
        for (int64_t j = 0; j < n; ++j) reflect(v, m, x.data() + j, n);
    }
    return std::vector<float>(x.begin(), x.end());
}

}  // namespace lmo
