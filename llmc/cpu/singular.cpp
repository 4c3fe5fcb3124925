// What needs singular values while training: directions of Schatten norms, the ends of the
// spectrum, and the lengths of steps that follow from dual norms.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "llmc/cpu/cpu_backend.h"

namespace lmo::cpu {

namespace {

constexpr int kMostSweeps = 30;  // of Jacobi rotations; 6 to 10 do

template <typename T>
constexpr DType type_of = sizeof(T) == 8 ? DType::f64 : DType::f32;

// X [rows, columns] with rows <= columns, the rotations R [rows, rows], and room for the result.
template <typename T>
struct JacobiBuffers {
    int64_t rows, columns;
    T *x, *r, *out;
    double* squares;

    JacobiBuffers(Scratch& scratch, const Shape& shape)
        : rows(std::min(shape[0], shape[1])), columns(std::max(shape[0], shape[1])) {
        x = scratch.take<T>(rows * columns);
        r = scratch.take<T>(rows * rows);
        out = scratch.take<T>(rows * columns);
        squares = scratch.take<double>(rows);
    }
};

template <typename T>
size_t jacobi_bytes(std::span<const Tensor> x) {
    size_t bytes = 0;
    for (const Tensor& tensor : x) {
        Scratch scratch;
        JacobiBuffers<T>(scratch, tensor.shape);
        bytes = std::max(bytes, scratch.bytes());
    }
    return bytes;
}

// Rotates the rows of x in pairs until all are orthogonal, and r with them: x = R X, r = R.
template <typename T>
void orthogonalise_rows(const Kernels& kernels, const JacobiBuffers<T>& work) {
    const int64_t rows = work.rows, columns = work.columns;
    const DType type = type_of<T>;
    const double tolerance =
        std::numeric_limits<T>::epsilon() * std::sqrt(static_cast<double>(columns));
    double* squares = work.squares;
    bool rotated = true;
    for (int sweep = 0; rotated && sweep < kMostSweeps; ++sweep) {
        rotated = false;
        for (int64_t i = 0; i < rows; ++i) {
            const T* x = work.x + i * columns;
            squares[i] = kernels.dot(type, x, x, columns);
        }
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t j = i + 1; j < rows; ++j) {
                if (squares[i] <= 0.0 || squares[j] <= 0.0) continue;
                T *x = work.x + i * columns, *y = work.x + j * columns;
                const double product = kernels.dot(type, x, y, columns);
                if (std::fabs(product) <= tolerance * std::sqrt(squares[i] * squares[j])) continue;
                rotated = true;
                // The angle that makes x and y orthogonal (Golub & Van Loan, 8.5.2).
                const double tau = (squares[j] - squares[i]) / (2.0 * product);
                const double root = std::fabs(tau) + std::sqrt(1.0 + tau * tau);
                const double tangent = (tau >= 0 ? 1.0 : -1.0) / root;
                const double cosine = 1.0 / std::sqrt(1.0 + tangent * tangent);
                kernels.rotate(type, x, y, cosine, cosine * tangent, columns);
                kernels.rotate(type, work.r + i * rows, work.r + j * rows, cosine, cosine * tangent,
                               rows);
                squares[i] -= tangent * product;
                squares[j] += tangent * product;
            }
        }
    }
    for (int64_t i = 0; i < rows; ++i) {
        const T* x = work.x + i * columns;
        squares[i] = kernels.dot(type, x, x, columns);
    }
}

// Factors of the rows s_i v_i^T that make them (s_i / ||s||_q)^(q-1) v_i^T; on entry the squares of
// the s_i.
void schatten_factors(double* squares, int64_t count, double p, double smallest_share) {
    double top = 0.0;
    int64_t first = 0;
    for (int64_t i = 0; i < count; ++i) {
        squares[i] = std::sqrt(std::max(0.0, squares[i]));
        if (squares[i] > top) {
            top = squares[i];
            first = i;
        }
    }
    if (p == 1.0) {
        for (int64_t i = 0; i < count; ++i) squares[i] = i == first && top > 0 ? 1.0 / top : 0.0;
        return;
    }
    const double power = std::isinf(p) ? 0.0 : 1.0 / (p - 1.0);  // q - 1
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) {
        if (squares[i] > smallest_share * top) sum += std::pow(squares[i] / top, power + 1.0);
    }
    const double norm = top * std::pow(sum, 1.0 / (power + 1.0));
    for (int64_t i = 0; i < count; ++i) {
        const double s = squares[i];
        squares[i] = s > smallest_share * top ? std::pow(s / norm, power) / s : 0.0;
    }
}

// Start of the power method: between 1/2 and 3/2, the same everywhere (a Weyl sequence).
double start_value(int64_t j) {
    const double x = 0.6180339887498949 * static_cast<double>(j);
    return 0.5 + (x - std::floor(x));
}

}  // namespace

size_t CpuBackend::workspace_bytes(const SchattenDirection& op) const {
    if (op.x.empty()) return 0;
    const size_t bytes =
        op.x[0].dtype == DType::f64 ? jacobi_bytes<double>(op.x) : jacobi_bytes<float>(op.x);
    return bytes * std::min<size_t>(static_cast<size_t>(threads_), op.x.size());
}

void CpuBackend::schatten_direction(const SchattenDirection& op) {
    assert(op.p >= 1.0);
    if (op.x.empty()) return;
    op.x[0].dtype == DType::f64 ? schatten_direction_in<double>(op)
                                : schatten_direction_in<float>(op);
}

template <typename T>
void CpuBackend::schatten_direction_in(const SchattenDirection& op) {
    const size_t bytes = jacobi_bytes<T>(op.x);
    const int lanes =
        static_cast<int>(std::min<size_t>(static_cast<size_t>(threads_), op.x.size()));
#pragma omp parallel for num_threads(lanes) schedule(dynamic, 1) if (lanes > 1)
    for (size_t i = 0; i < op.x.size(); ++i) {
        const size_t lane = lanes > 1 ? static_cast<size_t>(omp_get_thread_num()) : 0;
        Scratch scratch(op.workspace, lane * bytes);
        schatten_direction_of<T>(op.x[i], op.p, scratch);
    }
}

template <typename T>
void CpuBackend::schatten_direction_of(const Tensor& tensor, double p, Scratch& scratch) {
    assert(tensor.shape.rank() == 2 && tensor.dtype == type_of<T>);
    const JacobiBuffers<T> work(scratch, tensor.shape);
    const int64_t rows = work.rows, columns = work.columns;
    const bool tall = tensor.shape[0] > tensor.shape[1];
    T* x = tensor.as<T>();
    double top = 0.0;
    for (int64_t i = 0; i < rows * columns; ++i) top = std::max<double>(top, std::fabs(x[i]));
    if (top == 0.0) return;
    const auto at = [&](int64_t i, int64_t j) -> T& {
        return tall ? x[j * rows + i] : x[i * columns + j];
    };
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
            work.x[i * columns + j] = static_cast<T>(at(i, j) / top);
        }
        for (int64_t j = 0; j < rows; ++j) work.r[i * rows + j] = T(i == j);
    }
    orthogonalise_rows(kernels_, work);
    schatten_factors(work.squares, rows, p,
                     static_cast<double>(columns) * std::numeric_limits<T>::epsilon());
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
            work.x[i * columns + j] = static_cast<T>(work.x[i * columns + j] * work.squares[i]);
        }
    }
    // R^T (F R X) = U F S V^T
    blas_.gemm(Product<T>{true, false, rows, columns, rows, T(1), work.r, rows, work.x, columns,
                          T(0), work.out, columns});
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) at(i, j) = work.out[i * columns + j];
    }
}

size_t CpuBackend::workspace_bytes(const SingularRange& op) const {
    size_t bytes = 0;
    for (const Tensor& x : op.x) {
        Scratch scratch;
        scratch.take<double>(x.shape.rows());
        scratch.take<double>(x.shape.columns());
        scratch.take<double>(std::min(x.shape.rows(), x.shape.columns()));
        bytes = std::max(bytes, scratch.bytes());
    }
    return bytes * op.x.size();
}

void CpuBackend::singular_range(const SingularRange& op) {
    assert(op.out.dtype == DType::f64 && op.out.count() == 2 * int64_t(op.x.size()));
#pragma omp parallel for num_threads(threads_) schedule(dynamic, 1)
    for (size_t i = 0; i < op.x.size(); ++i) {
        op.x[i].dtype == DType::f64 ? singular_range_of<double>(op, i)
                                    : singular_range_of<float>(op, i);
    }
}

template <typename T>
void CpuBackend::singular_range_of(const SingularRange& op, size_t index) {
    const Tensor& tensor = op.x[index];
    const int64_t m = tensor.shape.rows(), n = tensor.shape.columns();
    const bool tall = m > n;
    const int64_t size = std::min(m, n), other = std::max(m, n);
    Scratch scratch(op.workspace, index * (workspace_bytes(op) / op.x.size()));
    double* left = scratch.take<double>(m);
    double* right = scratch.take<double>(n);
    double* old = scratch.take<double>(size);
    double *v = tall ? right : left, *image = tall ? left : right;
    const T* x = tensor.as<T>();
    const auto times = [&](double* to) {  // to [m] = X right
        for (int64_t i = 0; i < m; ++i) {
            double sum = 0.0;
            for (int64_t j = 0; j < n; ++j) sum += static_cast<double>(x[i * n + j]) * right[j];
            to[i] = sum;
        }
    };
    const auto times_transposed = [&](double* to) {  // to [n] = X^T left
        std::fill(to, to + n, 0.0);
        for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n; ++j) to[j] += static_cast<double>(x[i * n + j]) * left[i];
        }
    };
    const auto length = [](const double* values, int64_t count) {
        double squares = 0.0;
        for (int64_t i = 0; i < count; ++i) squares += values[i] * values[i];
        return std::sqrt(squares);
    };
    // With v normalised, image = X^T v (of the shorter side); its length is a singular value's
    // estimate.
    const auto look = [&] {
        const double norm = length(v, size);
        for (int64_t i = 0; i < size; ++i) v[i] = norm > 0.0 ? v[i] / norm : 0.0;
        tall ? times(image) : times_transposed(image);
        return length(image, other);
    };
    // v = shift v + sign A v
    const auto power = [&](double shift, double sign) {
        std::copy(v, v + size, old);
        tall ? times_transposed(v) : times(v);
        for (int64_t i = 0; i < size; ++i) v[i] = shift * old[i] + sign * v[i];
    };
    double* out = op.out.as<double>() + 2 * index;
    const auto search = [&](double shift, double sign) {
        for (int64_t i = 0; i < size; ++i) v[i] = start_value(i);
        double value = look();
        for (int k = 0; k < op.iterations; ++k) {
            power(shift, sign);
            value = look();
        }
        return value;
    };
    out[0] = search(0.0, 1.0);
    out[1] = op.smallest ? std::min(out[0], search(out[0] * out[0], -1.0)) : 0.0;
}

size_t CpuBackend::workspace_bytes(const DotProducts& op) const {
    int64_t blocks = 0;
    for (const Tensor& tensor : op.a) blocks += block_count(tensor.count(), element_block);
    Scratch scratch;
    scratch.take<double>(blocks);
    return scratch.bytes();
}

void CpuBackend::dot_products(const DotProducts& op) {
    assert(op.a.size() == op.b.size() && op.out.count() == int64_t(op.a.size()));
    Scratch scratch(op.workspace);
    int64_t blocks = 0;
    for (const Tensor& tensor : op.a) blocks += block_count(tensor.count(), element_block);
    double* parts = scratch.take<double>(blocks);
    parallel_lists(threads_, op.a, [&](size_t i, int64_t begin, int64_t end, int64_t block) {
        const Tensor &a = op.a[i], &b = op.b[i];
        assert(a.dtype == b.dtype && a.count() == b.count());
        const int64_t count = end - begin;
        parts[block] = kernels_.dot(a.dtype, a.slice(begin, {count}).data,
                                    b.slice(begin, {count}).data, count);
    });
    const double* part = parts;
    for (size_t i = 0; i < op.a.size(); ++i) {
        double total = 0.0;
        for (int64_t b = block_count(op.a[i].count(), element_block); b > 0; --b) total += *part++;
        op.out.as<double>()[i] = total;
    }
}

void CpuBackend::step_sizes(const StepSizes& op) {
    const size_t count = static_cast<size_t>(op.out.count());
    assert(op.rule == StepRule::unit || op.dot.count() == op.out.count());
    const double *dot = op.dot.as<double>(), *range = op.range.as<double>();
    double* out = op.out.as<double>();
    double sum = 0.0;
    const auto dual = [&](size_t i) { return op.radius[i] * dot[i]; };
    if (op.together && op.rule != StepRule::unit) {
        for (size_t i = 0; i < count; ++i) sum += dual(i);
    }
    for (size_t i = 0; i < count; ++i) {
        const double d = op.rule == StepRule::unit ? 0.0 : op.together ? sum : dual(i);
        double size = 1.0;
        if (op.rule == StepRule::dual) size = d;
        if (op.rule == StepRule::clipped) size = d > op.limit ? op.limit : d;  // NaN stays
        if (op.rule == StepRule::gluon) size = d > 0.0 ? d / (op.l0[i] + op.l1[i] * d) : d * 0.0;
        if (!op.range.empty()) {
            const double error =
                std::min(1.0, std::max(range[2 * i] - 1.0, 1.0 - range[2 * i + 1]));
            size *= (1.0 - error) / ((1.0 + error) * (1.0 + error));
        }
        out[i] = size;
    }
}

}  // namespace lmo::cpu
