// Sums of squares in fp64, in an order that does not depend on the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace lmo {

// ||x||^2.
template <class T>
double sum_of_squares(const T* x, int64_t count) {
    constexpr int64_t block = 1 << 14;
    const int64_t blocks = (count + block - 1) / block;
    std::vector<double> parts(static_cast<size_t>(blocks));
#pragma omp parallel for schedule(static) if (blocks > 4)
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t end = std::min(count, (b + 1) * block);
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = b * block; i < end; ++i) {
            sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        }
        parts[static_cast<size_t>(b)] = sum;
    }
    double total = 0.0;
    for (const double part : parts) total += part;
    return total;
}

// ||y - x||^2, on one thread.
template <class T>
double square_of_distance(const T* y, const T* x, int64_t count) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
        const double change = static_cast<double>(y[i]) - static_cast<double>(x[i]);
        sum += change * change;
    }
    return sum;
}

}  // namespace lmo
