#include "llmc/norm/singular_values.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>

#include "llmc/core/error.h"

namespace lmo {

namespace {

// Memory of a backend.
class Block {
  public:
    Block(Backend& backend, size_t bytes) : backend_(backend), data_(backend.allocate(bytes)) {}
    ~Block() { backend_.release(data_); }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    void* data() const { return data_; }

  private:
    Backend& backend_;
    void* data_;
};

Tensor f64_matrix(const Block& block, int64_t rows, int64_t columns) {
    return {block.data(), DType::f64, Shape{rows, columns}};
}

size_t f64_bytes(int64_t count) { return static_cast<size_t>(count) * sizeof(double); }

std::vector<double> transposed(std::span<const double> matrix, int64_t rows, int64_t columns) {
    std::vector<double> result(matrix.size());
#pragma omp parallel for
    for (int64_t j = 0; j < columns; ++j) {
        for (int64_t i = 0; i < rows; ++i) result[j * rows + i] = matrix[i * columns + j];
    }
    return result;
}

// The tridiagonal matrix that is similar to a symmetric one.
struct Tridiagonal {
    std::vector<double> diagonal, below;  // below[i] is element (i+1, i)
};

double norm2(std::span<const double> x) {
    double largest = 0.0, sum = 0.0;  // scaled: squares neither overflow nor vanish
    for (double value : x) largest = std::max(largest, std::fabs(value));
    if (largest == 0.0 || !std::isfinite(largest)) return largest;
    for (double value : x) sum += value / largest * (value / largest);
    return largest * std::sqrt(sum);
}

// Rows from which on a second thread saves more than it costs to wake it.
constexpr int64_t kWorthThreads = 200;

// One Householder reflection H = I - v v^T for each column, A = H A H. Every row is computed by
// one thread, so the bits do not depend on their number.
Tridiagonal tridiagonalise(std::span<double> a, int64_t n) {
    Tridiagonal t;
    std::vector<double> v(n), w(n);
    for (int64_t k = 0; k < n; ++k) {
        t.diagonal.push_back(a[k * n + k]);
        if (k == n - 1) break;
        const int64_t first = k + 1;
        for (int64_t i = first; i < n; ++i) v[i] = a[i * n + k];
        const double length = norm2(std::span(v).subspan(first));
        const double alpha = v[first] > 0.0 ? -length : length;
        t.below.push_back(alpha);
        if (length == 0.0) continue;
        v[first] -= alpha;
        const double scale = std::sqrt(2.0) / norm2(std::span(v).subspan(first));
        for (int64_t i = first; i < n; ++i) v[i] *= scale;
#pragma omp parallel for if (n - first > kWorthThreads)
        for (int64_t i = first; i < n; ++i) {
            double sum = 0.0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = first; j < n; ++j) sum += a[i * n + j] * v[j];
            w[i] = sum;
        }
        double half = 0.0;
        for (int64_t i = first; i < n; ++i) half += v[i] * w[i];
        half /= 2.0;
        for (int64_t i = first; i < n; ++i) w[i] -= half * v[i];
#pragma omp parallel for if (n - first > kWorthThreads)
        for (int64_t i = first; i < n; ++i) {
            const double vi = v[i], wi = w[i];
#pragma omp simd
            for (int64_t j = first; j < n; ++j) a[i * n + j] -= vi * w[j] + wi * v[j];
        }
    }
    return t;
}

// The largest |element|: rounding errors of a sweep are epsilon times this, everywhere, so that
// smaller elements below the diagonal are nothing.
double largest_element(const Tridiagonal& t) {
    double largest = 0.0;
    for (double value : t.diagonal) largest = std::max(largest, std::fabs(value));
    for (double value : t.below) largest = std::max(largest, std::fabs(value));
    return largest;
}

// Index of the first element from `from` on below which the matrix falls apart.
int64_t end_of_block(const Tridiagonal& t, int64_t from, double nothing) {
    const int64_t last = static_cast<int64_t>(t.diagonal.size()) - 1;
    int64_t end = from;
    while (end < last && !(std::fabs(t.below[end]) <= nothing)) ++end;
    return end;
}

// One QL sweep with an implicit Wilkinson shift over rows first..last.
void ql_sweep(Tridiagonal& t, int64_t first, int64_t last) {
    std::vector<double>& d = t.diagonal;
    std::vector<double>& e = t.below;
    const double gap = (d[first + 1] - d[first]) / (2.0 * e[first]);
    const double root = std::hypot(gap, 1.0);
    double g = d[last] - d[first] + e[first] / (gap + std::copysign(root, gap));
    double sine = 1.0, cosine = 1.0, carried = 0.0;
    for (int64_t i = last - 1; i >= first; --i) {
        const double f = sine * e[i], b = cosine * e[i];
        const double r = std::hypot(f, g);
        if (i + 1 < last) e[i + 1] = r;
        if (r == 0.0) {  // the block falls apart here; the next sweep sees it
            d[i + 1] -= carried;
            return;
        }
        sine = f / r;
        cosine = g / r;
        g = d[i + 1] - carried;
        const double s = (d[i] - g) * sine + 2.0 * cosine * b;
        carried = sine * s;
        d[i + 1] = g + carried;
        g = cosine * s - b;
    }
    d[first] -= carried;
    e[first] = g;
}

}  // namespace

std::vector<double> symmetric_eigenvalues(std::span<double> matrix, int64_t n) {
    assert(static_cast<int64_t>(matrix.size()) == n * n);
    if (n == 0) return {};
    for (double value : matrix) {
        if (!std::isfinite(value)) throw Error("eigenvalues: a matrix that is not finite");
    }
    Tridiagonal t = tridiagonalise(matrix, n);
    const double nothing = std::numeric_limits<double>::epsilon() * largest_element(t);
    constexpr int kSweeps = 60;  // two or three are usual
    for (int64_t first = 0; first < n; ++first) {
        for (int sweep = 0;; ++sweep) {
            const int64_t last = end_of_block(t, first, nothing);
            if (last == first) break;
            if (sweep == kSweeps) {
                throw Error("eigenvalues: no convergence for a matrix of " + std::to_string(n) +
                            " rows");
            }
            ql_sweep(t, first, last);
        }
    }
    std::sort(t.diagonal.begin(), t.diagonal.end(), std::greater<>());
    return t.diagonal;
}

std::vector<double> singular_values(Backend& host, std::span<const double> matrix,
                                    const Shape& shape) {
    assert(host.has_fp64());
    const int64_t rows = shape.rows(), columns = shape.columns();
    const int64_t n = std::min(rows, columns), length = std::max(rows, columns);
    if (n == 0) return {};
    const Block a_block(host, f64_bytes(n * length)), c_block(host, f64_bytes(n * n));
    const Tensor a = f64_matrix(a_block, n, length), c = f64_matrix(c_block, n, n);
    host.copy_in(a, rows <= columns ? matrix.data() : transposed(matrix, rows, columns).data());
    SymmetricProduct gram{a, {}, c, 1.0, 0.0, {}};
    const auto words = static_cast<int64_t>((host.workspace_bytes(gram) + 3) / 4);
    const Block workspace(host, static_cast<size_t>(std::max<int64_t>(words, 1)) * 4);
    gram.workspace = {workspace.data(), DType::f32, Shape{words}};
    host.symmetric_product(gram);
    std::vector<double> values(static_cast<size_t>(n * n));
    host.copy_out(values.data(), c);
    std::vector<double> result = symmetric_eigenvalues(values, n);
    for (double& value : result) value = std::sqrt(std::max(value, 0.0));
    return result;
}

}  // namespace lmo
