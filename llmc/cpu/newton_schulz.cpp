// Newton-Schulz orthogonalisation: with X wide (m <= n), two symmetric products of size m and one
// full product a step, m^2 (3 n + m) operations and a bit where the three plain products take
// 4 m^2 n + 2 m^3. A step with c = 0 has no A^2.
//   A = X X^T,  B = a I + b A + c A^2,  X = B X
// The gram form iterates on A alone, A = B A B, and collects Q = B Q, X = Q X at the end and before
// restarts: n is in it 3 times and once more a restart.
// With bf16 inside, on processors that have it, newton_schulz_bf16.h takes their place.
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "llmc/cpu/cpu_backend.h"

namespace lmo::cpu {

namespace {

// By itself the gram form is taken in fp32 where it is faster (measured on shapes from 64 x 192 to
// 2304 x 768: 1.1 to 1.4 times from twice as long as wide on, 0.9 at 1.5 times); fp64 keeps to the
// equations.
bool is_gram(const NewtonSchulz& op) {
    constexpr int64_t kSide = 64, kRatio = 2;
    if (op.form != NewtonSchulzForm::automatic) return op.form == NewtonSchulzForm::gram;
    if (op.inner == DType::bf16) return false;
    const auto [shorter, longer] = std::minmax({op.x[0].shape[0], op.x[0].shape[1]});
    return op.x[0].dtype == DType::f32 && shorter >= kSide && longer >= kRatio * shorter;
}

// Partial sums of the squares of one matrix.
double* take_parts(Scratch& scratch, const NewtonSchulz& op) {
    return scratch.take<double>(block_count(op.x[0].count(), element_block));
}

// X and its successor [rows, columns], A, B and for the gram form Q and a spare one [rows, rows];
// rows <= columns.
template <typename T>
struct Buffers {
    int64_t rows, columns;
    T *x, *next, *a, *b, *q = nullptr, *spare = nullptr;
    double* parts;

    Buffers(Scratch& scratch, const NewtonSchulz& op)
        : rows(std::min(op.x[0].shape[0], op.x[0].shape[1])),
          columns(std::max(op.x[0].shape[0], op.x[0].shape[1])) {
        x = scratch.take<T>(rows * columns);
        next = scratch.take<T>(rows * columns);
        a = scratch.take<T>(rows * rows);
        b = scratch.take<T>(rows * rows);
        if (is_gram(op)) {
            q = scratch.take<T>(rows * rows);
            spare = scratch.take<T>(rows * rows);
        }
        parts = take_parts(scratch, op);
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

// Of one matrix.
template <typename T>
size_t buffer_bytes(const NewtonSchulz& op) {
    Scratch scratch;
    Buffers<T>(scratch, op);
    return scratch.bytes();
}

// The iteration on a matrix that is in x, normalised and wide.
template <typename T>
class Iteration {
  public:
    Iteration(const Blas& blas, const NewtonSchulz& op, Buffers<T>& work)
        : blas_(blas), op_(op), work_(work), rows_(work.rows), columns_(work.columns) {}

    void standard() {
        for (const NewtonSchulzStep& step : op_.steps) {
            gram_matrix();
            polynomial(step);
            advance(work_.b);
        }
    }

    void gram() {
        bool fresh = true;  // Q is the identity
        for (size_t i = 0; i < op_.steps.size(); ++i) {
            if (!fresh && restarts_at(i)) {
                advance(work_.q);
                fresh = true;
            }
            if (fresh) gram_matrix();
            polynomial(op_.steps[i]);
            if (i + 1 < op_.steps.size() && !restarts_at(i + 1)) {  // A is wanted again
                multiply(work_.b, work_.a, rows_, work_.spare);
                multiply(work_.spare, work_.b, rows_, work_.a);
            }
            if (fresh) {
                std::swap(work_.q, work_.b);
            } else {
                multiply(work_.b, work_.q, rows_, work_.spare);
                std::swap(work_.q, work_.spare);
            }
            fresh = false;
        }
        if (!fresh) advance(work_.q);
    }

  private:
    bool restarts_at(size_t step) const {
        return std::find(op_.restarts.begin(), op_.restarts.end(), static_cast<int>(step)) !=
               op_.restarts.end();
    }
    // a = x x^T
    void gram_matrix() { blas_.symmetric(rows_, columns_, T(1), work_.x, T(0), work_.a); }
    // b = step.a I + step.b a + step.c a^2
    void polynomial(const NewtonSchulzStep& step) {
        const int64_t count = rows_ * rows_;
        if (step.c == 0.0) {
            std::transform(work_.a, work_.a + count, work_.b,
                           [&](T value) { return T(step.b) * value; });
        } else {
            std::copy(work_.a, work_.a + count, work_.b);
            blas_.symmetric(rows_, rows_, T(step.c), work_.a, T(step.b), work_.b);
        }
        for (int64_t i = 0; i < rows_; ++i) work_.b[i * rows_ + i] += T(step.a);
    }
    // x = left x
    void advance(const T* left) {
        multiply(left, work_.x, columns_, work_.next);
        std::swap(work_.x, work_.next);
    }
    // to [rows, n] = left [rows, rows] right [rows, n]
    void multiply(const T* left, const T* right, int64_t n, T* to) {
        blas_.gemm(
            Product<T>{false, false, rows_, n, rows_, T(1), left, rows_, right, n, T(0), to, n});
    }

    const Blas& blas_;
    const NewtonSchulz& op_;
    Buffers<T>& work_;
    int64_t rows_, columns_;
};

constexpr int64_t kSmallMatrix = 1 << 16;  // elements

}  // namespace

// Matrices worked on side by side, each by one thread; else they come one by one and all threads
// share the products. Small products do not occupy several threads, and large ones would need much
// memory side by side, or the library that is AMX's, which is not for several at once.
int CpuBackend::newton_schulz_lanes(const NewtonSchulz& op) const {
    constexpr int64_t small = kSmallMatrix, large = 1 << 20;  // elements
    const int64_t elements = op.x[0].count(), matrices = static_cast<int64_t>(op.x.size());
    const bool shared = matrices < threads_ || (op.inner == DType::bf16 && bf16_matmul_.fast());
    if (elements > (shared ? small : large)) return 1;
    return static_cast<int>(std::min<int64_t>(threads_, matrices));
}

Bf16NewtonSchulz CpuBackend::bf16_newton_schulz(const NewtonSchulz& op) const {
    if (newton_schulz_lanes(op) > 1) return {op, 1, nullptr};
    // By the size alone: threads and company must not change the bits.
    const bool by_library = bf16_matmul_.fast() && op.x[0].count() > kSmallMatrix;
    return {op, threads_, by_library ? &bf16_matmul_ : nullptr};
}

// Of one matrix.
size_t CpuBackend::newton_schulz_bytes(const NewtonSchulz& op) const {
    if (op.x[0].dtype == DType::f64) return buffer_bytes<double>(op);
    if (op.inner != DType::bf16) return buffer_bytes<float>(op);
    Scratch scratch;
    take_parts(scratch, op);
    return scratch.bytes() + bf16_newton_schulz(op).workspace_bytes();
}

size_t CpuBackend::workspace_bytes(const NewtonSchulz& op) const {
    if (op.x.empty()) return 0;
    return static_cast<size_t>(newton_schulz_lanes(op)) * newton_schulz_bytes(op);
}

double CpuBackend::executed_flops(const NewtonSchulz& op) const {
    if (op.x.empty()) return 0.0;
    if (op.inner == DType::bf16 && op.x[0].dtype == DType::f32) {
        return bf16_newton_schulz(op).executed_flops() * static_cast<double>(op.x.size());
    }
    const Shape& shape = op.x[0].shape;
    const int64_t rows = std::min(shape[0], shape[1]), columns = std::max(shape[0], shape[1]);
    const double square = 2.0 * static_cast<double>(rows * rows);  // a column of a product
    const double start = Blas::symmetric_flops(rows, columns);
    const double full = square * static_cast<double>(columns);
    double flops = 0.0;
    for (const NewtonSchulzStep& step : op.steps) {
        if (step.c != 0.0) flops += Blas::symmetric_flops(rows, rows);
    }
    if (is_gram(op)) {  // between starts: A = B A B and Q = B Q, but for the last step of each
        const double starts = 1.0 + static_cast<double>(op.restarts.size());
        const double steps = static_cast<double>(op.steps.size());
        flops +=
            starts * (start + full) + (steps - starts) * 3.0 * square * static_cast<double>(rows);
    } else {
        flops += static_cast<double>(op.steps.size()) * (start + full);
    }
    return flops * static_cast<double>(op.x.size());
}

void CpuBackend::newton_schulz(const NewtonSchulz& op) {
    if (op.x.empty()) return;
    assert(has_newton_schulz(op.inner));
    const size_t bytes = newton_schulz_bytes(op);
    const int side_by_side = newton_schulz_lanes(op);
    // Inside of a parallel region every operation runs on the calling thread alone.
#pragma omp parallel for num_threads(side_by_side) schedule(dynamic, 1) if (side_by_side > 1)
    for (size_t i = 0; i < op.x.size(); ++i) {
        assert(op.x[i].shape == op.x[0].shape && op.x[i].dtype == op.x[0].dtype);
        const size_t lane = side_by_side > 1 ? static_cast<size_t>(omp_get_thread_num()) : 0;
        Scratch scratch(op.workspace, lane * bytes);
        if (op.x[0].dtype == DType::f64) {
            orthogonalise<double>(op, op.x[i], scratch);
        } else if (op.inner == DType::bf16) {
            orthogonalise_bf16(op, op.x[i], scratch);
        } else {
            orthogonalise<float>(op, op.x[i], scratch);
        }
    }
}

// The iteration takes far longer than the passes that one kernel could save.
void CpuBackend::spectral_update(const SpectralUpdate& op) {
    momentum(op.momentum);
    NewtonSchulz iteration = op.iteration;
    iteration.x = op.momentum.x;
    newton_schulz(iteration);
    Apply step = op.apply;
    step.x = op.momentum.x;
    apply(step);
}

// Of a matrix: its Frobenius norm and what belongs to it.
double CpuBackend::newton_schulz_divisor(const NewtonSchulz& op, const Tensor& tensor,
                                         double* parts) const {
    const int64_t count = tensor.count();
    parallel_blocks(threads_, count, element_block, [&](int64_t begin, int64_t end) {
        parts[begin / element_block] =
            kernels_.sum_of_squares(tensor.dtype, tensor.data, begin, end);
    });
    double squares = 0;
    for (int64_t b = 0; b < block_count(count, element_block); ++b) squares += parts[b];
    return std::sqrt(squares) * op.norm_scale + op.eps;
}

void CpuBackend::orthogonalise_bf16(const NewtonSchulz& op, const Tensor& tensor,
                                    Scratch& scratch) const {
    const double divisor = newton_schulz_divisor(op, tensor, take_parts(scratch, op));
    bf16_newton_schulz(op).run(*bf16_tiles_, tensor, divisor, scratch);
}

template <typename T>
void CpuBackend::orthogonalise(const NewtonSchulz& op, const Tensor& tensor,
                               Scratch& scratch) const {
    Buffers<T> work(scratch, op);
    const int64_t rows = work.rows, columns = work.columns, count = rows * columns;
    const bool tall = tensor.shape[0] > tensor.shape[1];
    const double divisor = newton_schulz_divisor(op, tensor, work.parts);
    T* normalised = tall ? work.next : work.x;
    parallel_blocks(threads_, count, element_block, [&](int64_t begin, int64_t end) {
        kernels_.divide(tensor.dtype, normalised, tensor.data, divisor, begin, end);
    });
    if (tall) transpose(threads_, columns, rows, work.next, work.x);

    Iteration<T> iteration(blas_, op, work);
    is_gram(op) ? iteration.gram() : iteration.standard();
    if (tall) {
        transpose(threads_, rows, columns, work.x, tensor.as<T>());
    } else {
        convert(tensor.dtype, tensor.data, tensor.dtype, work.x, count);
    }
}

}  // namespace lmo::cpu
