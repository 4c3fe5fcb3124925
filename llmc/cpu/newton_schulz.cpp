// Newton-Schulz orthogonalisation: with X wide (m <= n), two symmetric products of size m and one
// full product a step, m^2 (3 n + m) operations and a bit where the three plain products take
// 4 m^2 n + 2 m^3. A step with c = 0 has no A^2.
//   A = X X^T,  B = a I + b A + c A^2,  X = B X
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "llmc/cpu/cpu_backend.h"

namespace lmo::cpu {

namespace {

// X and its successor [rows, columns], A and B [rows, rows]; rows <= columns.
template <typename T>
struct Buffers {
    int64_t rows, columns;
    T *x, *next, *a, *b;
    double* parts;

    Buffers(Scratch& scratch, const Shape& shape)
        : rows(std::min(shape[0], shape[1])), columns(std::max(shape[0], shape[1])) {
        x = scratch.take<T>(rows * columns);
        next = scratch.take<T>(rows * columns);
        a = scratch.take<T>(rows * rows);
        b = scratch.take<T>(rows * rows);
        parts = scratch.take<double>(block_count(rows * columns, element_block));
    }
};

// to [n, m] = the transpose of from [m, n], by tiles that fit into the cache.
template <typename T>
void transpose(int threads, int64_t m, int64_t n, const T* from, T* to) {
    constexpr int64_t tile = 32;
    parallel_blocks(threads, m, tile, [&](int64_t begin, int64_t end) {
        for (int64_t column = 0; column < n; column += tile) {
            for (int64_t j = column; j < std::min(n, column + tile); ++j) {
                for (int64_t i = begin; i < end; ++i) to[j * m + i] = from[i * n + j];
            }
        }
    });
}

// Matrices worked on side by side, each by one thread; else they come one by one and all threads
// share the products. Small products do not occupy several threads, and large ones would need much
// memory side by side.
int lanes(const NewtonSchulz& op, int threads) {
    constexpr int64_t small = 1 << 16, large = 1 << 20;  // elements
    const int64_t elements = op.x[0].count(), matrices = static_cast<int64_t>(op.x.size());
    if (elements > (matrices < threads ? small : large)) return 1;
    return static_cast<int>(std::min<int64_t>(threads, matrices));
}

// Of one matrix.
template <typename T>
size_t buffer_bytes(const NewtonSchulz& op) {
    Scratch scratch;
    Buffers<T>(scratch, op.x[0].shape);
    return scratch.bytes();
}

}  // namespace

size_t CpuBackend::workspace_bytes(const NewtonSchulz& op) const {
    if (op.x.empty()) return 0;
    const bool wide = op.x[0].dtype == DType::f64;
    return static_cast<size_t>(lanes(op, threads_)) *
           (wide ? buffer_bytes<double>(op) : buffer_bytes<float>(op));
}

double CpuBackend::executed_flops(const NewtonSchulz& op) const {
    if (op.x.empty()) return 0.0;
    const Shape& shape = op.x[0].shape;
    const int64_t rows = std::min(shape[0], shape[1]), columns = std::max(shape[0], shape[1]);
    double flops = 0.0;
    for (const NewtonSchulzStep& step : op.steps) {
        flops += Blas::symmetric_flops(rows, columns) +
                 2.0 * static_cast<double>(rows * rows) * static_cast<double>(columns);
        if (step.c != 0.0) flops += Blas::symmetric_flops(rows, rows);
    }
    return flops * static_cast<double>(op.x.size());
}

void CpuBackend::newton_schulz(const NewtonSchulz& op) {
    if (op.x.empty()) return;
    op.x[0].dtype == DType::f64 ? newton_schulz_in<double>(op) : newton_schulz_in<float>(op);
}

template <typename T>
void CpuBackend::newton_schulz_in(const NewtonSchulz& op) {
    const size_t bytes = buffer_bytes<T>(op);
    const int side_by_side = lanes(op, threads_);
    // Inside of a parallel region every operation runs on the calling thread alone.
#pragma omp parallel for num_threads(side_by_side) schedule(dynamic, 1) if (side_by_side > 1)
    for (size_t i = 0; i < op.x.size(); ++i) {
        assert(op.x[i].shape == op.x[0].shape && op.x[i].dtype == op.x[0].dtype);
        const size_t lane = side_by_side > 1 ? static_cast<size_t>(omp_get_thread_num()) : 0;
        Scratch scratch(op.workspace, lane * bytes);
        orthogonalise<T>(op, op.x[i], scratch);
    }
}

template <typename T>
void CpuBackend::orthogonalise(const NewtonSchulz& op, const Tensor& tensor,
                               Scratch& scratch) const {
    Buffers<T> work(scratch, tensor.shape);
    const int64_t rows = work.rows, columns = work.columns, count = rows * columns;
    const bool tall = tensor.shape[0] > tensor.shape[1];
    parallel_blocks(threads_, count, element_block, [&](int64_t begin, int64_t end) {
        work.parts[begin / element_block] =
            kernels_.sum_of_squares(tensor.dtype, tensor.data, begin, end);
    });
    double squares = 0;
    for (int64_t b = 0; b < block_count(count, element_block); ++b) squares += work.parts[b];
    const double divisor = std::sqrt(squares) * op.norm_scale + op.eps;
    T* normalised = tall ? work.next : work.x;
    parallel_blocks(threads_, count, element_block, [&](int64_t begin, int64_t end) {
        kernels_.divide(tensor.dtype, normalised, tensor.data, divisor, begin, end);
    });
    if (tall) transpose(threads_, columns, rows, work.next, work.x);

    for (const NewtonSchulzStep& step : op.steps) {
        blas_.symmetric(rows, columns, T(1), work.x, T(0), work.a);
        if (step.c == 0.0) {
            std::transform(work.a, work.a + rows * rows, work.b,
                           [&](T value) { return T(step.b) * value; });
        } else {
            std::copy(work.a, work.a + rows * rows, work.b);
            blas_.symmetric(rows, rows, T(step.c), work.a, T(step.b), work.b);
        }
        for (int64_t i = 0; i < rows; ++i) work.b[i * rows + i] += T(step.a);
        blas_.gemm(Product<T>{false, false, rows, columns, rows, T(1), work.b, rows, work.x,
                              columns, T(0), work.next, columns});
        std::swap(work.x, work.next);
    }
    if (tall) {
        transpose(threads_, rows, columns, work.x, tensor.as<T>());
    } else {
        convert(tensor.dtype, tensor.data, tensor.dtype, work.x, count);
    }
}

}  // namespace lmo::cpu
