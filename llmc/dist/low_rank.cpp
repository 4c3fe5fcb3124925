#include "llmc/dist/low_rank.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "llmc/dist/squares.h"

namespace lmo {

namespace {

// Elements of a row that are worked on while they are in the first cache, and rows taken with them.
constexpr int64_t kChunk = 256, kRows = 16;
// Products from which on a second thread saves more than it costs to wake it.
constexpr int64_t kWorthThreads = 1 << 16;

// Without OpenMP nobody asks.
[[maybe_unused]] int64_t products(const LowRankShape& s) { return s.rows * s.columns * s.rank; }

// to[j] += sum over k < count of factors[k * step] * rows[k * stride + j], j < n.
template <class T>
void add_rows(const T* factors, int64_t step, const T* rows, int64_t stride, int64_t count,
              int64_t n, T* to) {
    int64_t k = 0;
    for (; k + 4 <= count; k += 4) {
        const T a = factors[k * step], b = factors[(k + 1) * step], c = factors[(k + 2) * step],
                d = factors[(k + 3) * step];
        const T* row = rows + k * stride;
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
            to[j] += (a * row[j] + b * row[stride + j]) +
                     (c * row[2 * stride + j] + d * row[3 * stride + j]);
        }
    }
    for (; k < count; ++k) {
        const T a = factors[k * step];
        const T* row = rows + k * stride;
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) to[j] += a * row[j];
    }
}

}  // namespace

template <class T>
void multiply_transposed(const LowRankShape& s, const T* x, const T* q, T* p) {
    const int64_t n = s.columns;
#pragma omp parallel for schedule(static) if (products(s) > kWorthThreads)
    for (int64_t i = 0; i < s.rows; ++i) {
        const T* row = x + i * n;
        int64_t k = 0;
        for (; k + 4 <= s.rank; k += 4) {
            const T* at = q + k * n;
            T a{}, b{}, c{}, d{};
#pragma omp simd reduction(+ : a, b, c, d)
            for (int64_t j = 0; j < n; ++j) {
                a += row[j] * at[j];
                b += row[j] * at[n + j];
                c += row[j] * at[2 * n + j];
                d += row[j] * at[3 * n + j];
            }
            T* to = p + i * s.rank + k;
            to[0] = a, to[1] = b, to[2] = c, to[3] = d;
        }
        for (; k < s.rank; ++k) {
            T sum{};
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < n; ++j) sum += row[j] * q[k * n + j];
            p[i * s.rank + k] = sum;
        }
    }
}

template <class T>
void transposed_multiply(const LowRankShape& s, const T* p, const T* x, T* q) {
    const int64_t n = s.columns;
#pragma omp parallel for schedule(static) if (products(s) > kWorthThreads)
    for (int64_t begin = 0; begin < n; begin += kChunk) {
        const int64_t width = std::min(kChunk, n - begin);
        for (int64_t k = 0; k < s.rank; ++k) std::fill_n(q + k * n + begin, width, T{});
        for (int64_t i = 0; i < s.rows; i += kRows) {
            const int64_t rows = std::min(kRows, s.rows - i);
            for (int64_t k = 0; k < s.rank; ++k) {
                add_rows(p + i * s.rank + k, s.rank, x + i * n + begin, n, rows, width,
                         q + k * n + begin);
            }
        }
    }
}

namespace {

// Calls body(row, first column, elements of P Q, their number) for pieces of rows.
template <class T, class Body>
void each_piece(const LowRankShape& s, const T* p, const T* q, Body body) {
#pragma omp parallel for schedule(static) if (products(s) > kWorthThreads)
    for (int64_t i = 0; i < s.rows; ++i) {
        T piece[kChunk];
        for (int64_t begin = 0; begin < s.columns; begin += kChunk) {
            const int64_t width = std::min(kChunk, s.columns - begin);
            std::fill_n(piece, width, T{});
            add_rows(p + i * s.rank, 1, q + begin, s.columns, s.rank, width, piece);
            body(i, begin, piece, width);
        }
    }
}

}  // namespace

template <class T>
void multiply(const LowRankShape& s, const T* p, const T* q, T* y) {
    each_piece(s, p, q, [&](int64_t i, int64_t begin, const T* piece, int64_t width) {
        std::copy(piece, piece + width, y + i * s.columns + begin);
    });
}

template <class T>
double replace_by_product(const LowRankShape& s, const T* p, const T* q, T* x) {
    std::vector<double> errors(static_cast<size_t>(s.rows));
    each_piece(s, p, q, [&](int64_t i, int64_t begin, const T* piece, int64_t width) {
        T* to = x + i * s.columns + begin;
        errors[static_cast<size_t>(i)] += square_of_distance(piece, to, width);
        std::copy(piece, piece + width, to);
    });
    double error = 0.0;
    for (const double part : errors) error += part;
    return error;
}

namespace {

double dot(const double* a, const double* b, int64_t n) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

// The columns of P, one after the other.
template <class T>
std::vector<double> columns_of(const LowRankShape& s, const T* p) {
    std::vector<double> columns(static_cast<size_t>(s.rows * s.rank));
    for (int64_t i = 0; i < s.rows; ++i) {
        for (int64_t k = 0; k < s.rank; ++k) {
            columns[static_cast<size_t>(k * s.rows + i)] = static_cast<double>(p[i * s.rank + k]);
        }
    }
    return columns;
}

}  // namespace

template <class T>
void orthonormalise(const LowRankShape& s, T* p) {
    const int64_t m = s.rows;
    std::vector<double> columns = columns_of(s, p);
    const double noise = 4.0 * std::sqrt(static_cast<double>(s.columns)) *
                         static_cast<double>(std::numeric_limits<T>::epsilon());
    for (int64_t k = 0; k < s.rank; ++k) {
        double* column = columns.data() + k * m;
        const double length = std::sqrt(dot(column, column, m));
        for (int64_t before = 0; before < 2 * k; ++before) {
            const double* other = columns.data() + before % k * m;
            const double along = dot(other, column, m);
#pragma omp simd
            for (int64_t i = 0; i < m; ++i) column[i] -= along * other[i];
        }
        const double left = std::sqrt(dot(column, column, m));
        const bool vanished = std::isfinite(length) && left <= noise * length;
        for (int64_t i = 0; i < m; ++i) column[i] = vanished ? 0.0 : column[i] / left;
    }
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t k = 0; k < s.rank; ++k) {
            p[i * s.rank + k] = static_cast<T>(columns[static_cast<size_t>(k * m + i)]);
        }
    }
}

template <class T>
std::vector<double> gram_matrix(const LowRankShape& s, const T* p) {
    const std::vector<double> columns = columns_of(s, p);
    std::vector<double> gram;
    for (int64_t i = 0; i < s.rank; ++i) {
        for (int64_t j = 0; j < s.rank; ++j) {
            gram.push_back(dot(columns.data() + i * s.rows, columns.data() + j * s.rows, s.rows));
        }
    }
    return gram;
}

template <class T>
void fit_row(const LowRankShape& s, const std::vector<double>& gram, int64_t k, T* q) {
    const double* products = gram.data() + k * s.rank;  // of column k of P with the others
    T* row = q + k * s.columns;
    if (products[k] == 0.0) {
        std::fill_n(row, s.columns, T{});
        return;
    }
    std::vector<T> factors;
    for (int64_t i = 0; i < k; ++i) factors.push_back(static_cast<T>(-products[i]));
    add_rows(factors.data(), 1, q, s.columns, k, s.columns, row);
    const T scale = static_cast<T>(1.0 / products[k]);
#pragma omp simd
    for (int64_t j = 0; j < s.columns; ++j) row[j] *= scale;
}

template void multiply_transposed(const LowRankShape&, const float*, const float*, float*);
template void multiply_transposed(const LowRankShape&, const double*, const double*, double*);
template void transposed_multiply(const LowRankShape&, const float*, const float*, float*);
template void transposed_multiply(const LowRankShape&, const double*, const double*, double*);
template void multiply(const LowRankShape&, const float*, const float*, float*);
template void multiply(const LowRankShape&, const double*, const double*, double*);
template double replace_by_product(const LowRankShape&, const float*, const float*, float*);
template double replace_by_product(const LowRankShape&, const double*, const double*, double*);
template void orthonormalise(const LowRankShape&, float*);
template void orthonormalise(const LowRankShape&, double*);
template std::vector<double> gram_matrix(const LowRankShape&, const float*);
template std::vector<double> gram_matrix(const LowRankShape&, const double*);
template void fit_row(const LowRankShape&, const std::vector<double>&, int64_t, float*);
template void fit_row(const LowRankShape&, const std::vector<double>&, int64_t, double*);

}  // namespace lmo
