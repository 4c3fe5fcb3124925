// The row-wise parts of attention on one tile of scores; the products around them are GEMMs.
#include "llmc/cpu/elements.h"

namespace lmo::cpu::LMO_ISA {
namespace {

// The unmasked part of a row, rounded up to whole vectors: masked scores of -infinity have weight 0
// and spare the loops their tails.
int64_t whole_vectors(int64_t valid, int64_t columns) {
    const int64_t whole = (valid + 15) / 16 * 16;
    return whole < columns ? whole : columns;
}

// scores -> softmax over the unmasked part of each row, 0 beyond it; lse = log-sum-exp of the row.
template <typename T>
void softmax_rows(const ScoreTile& tile) {
    T* lse = static_cast<T*>(tile.lse);
    T* tops = static_cast<T*>(tile.top);
    for (int64_t r = 0; r < tile.rows; ++r) {
        T* row = static_cast<T*>(tile.scores) + r * tile.columns;
        const int64_t valid = tile.first + r + 1, whole = whole_vectors(valid, tile.columns);
        for (int64_t j = valid; j < whole; ++j) row[j] = -T(__builtin_inf());
        T top = row[0];
#pragma omp simd reduction(max : top)
        for (int64_t j = 0; j < whole; ++j) top = row[j] > top ? row[j] : top;
        if (tops) tops[r] = top;
        T total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < whole; ++j) {
            row[j] = exponential(row[j] - top);
            total += row[j];
        }
        const T inverse = 1 / total;
#pragma omp simd
        for (int64_t j = 0; j < whole; ++j) row[j] *= inverse;
        for (int64_t j = whole; j < tile.columns; ++j) row[j] = 0;
        lse[r] = static_cast<T>(top + __builtin_log(static_cast<double>(total)));
    }
}

// scores -> P = exp(scores - lse), gradients (dP) -> dS = scale P (dP - delta), 0 beyond the mask,
// with delta = sum of P dP over the row. (dout . out is the same number, rounded differently: the
// gradient of a row with one key would then be noise instead of 0, and a sign step would follow
// it.) P is divided by its sum, because the rounding of a large lse would be a factor common to the
// row.
template <typename T>
void softmax_backward_rows(const ScoreTile& tile) {
    const T* lse = static_cast<const T*>(tile.lse);
    const T scale = static_cast<T>(tile.scale);
    for (int64_t r = 0; r < tile.rows; ++r) {
        T* row = static_cast<T*>(tile.scores) + r * tile.columns;
        T* gradient = static_cast<T*>(tile.gradients) + r * tile.columns;
        const int64_t valid = tile.first + r + 1, whole = whole_vectors(valid, tile.columns);
        for (int64_t j = valid; j < whole; ++j) {
            row[j] = -T(__builtin_inf());
            gradient[j] = 0;  // whatever it was: a later position must not reach this one
        }
        const T shift = lse[r];
        T total = 0, delta = 0;
#pragma omp simd reduction(+ : total, delta)
        for (int64_t j = 0; j < whole; ++j) {
            row[j] = exponential(row[j] - shift);
            total += row[j];
            delta += row[j] * gradient[j];
        }
        delta /= total;
        const T inverse = 1 / total;
#pragma omp simd
        for (int64_t j = 0; j < whole; ++j) {
            row[j] *= inverse;
            gradient[j] = scale * row[j] * (gradient[j] - delta);
        }
        for (int64_t j = whole; j < tile.columns; ++j) row[j] = gradient[j] = 0;
    }
}

void softmax(DType type, const ScoreTile& tile) {
    type == DType::f64 ? softmax_rows<double>(tile) : softmax_rows<float>(tile);
}

void softmax_backward(DType type, const ScoreTile& tile) {
    type == DType::f64 ? softmax_backward_rows<double>(tile) : softmax_backward_rows<float>(tile);
}

}  // namespace

void add_attention_kernels(Kernels& table) {
    table.softmax = softmax;
    table.softmax_backward = softmax_backward;
}

}  // namespace lmo::cpu::LMO_ISA
