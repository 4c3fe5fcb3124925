// The norms. For an m x n tensor x = U S V^T with k = min(m, n), and q = p/(p-1):
//
//   norm       dir(x)                           primal norm            dual norm            kappa
//   sign       sign(x)                          largest |entry|        sum of |entries|     m n
//   frobenius  x / ||x||_F                      Frobenius              Frobenius            1
//   rms        sqrt(m n) x / ||x||_F            ||x||_F / sqrt(m n)    sqrt(m n) ||x||_F    m n
//   row        each row over its 2-norm         largest row            sum of the rows      m
//   column     each column over its 2-norm      largest column         sum of the columns   n
//   spectral   U V^T, by Newton-Schulz          largest of S           sum of S (nuclear)   k
//   schatten   U S^(q-1) V^T / ||S||_q^(q-1)    ||S||_p                ||S||_q     k^(1/q - 1/p) or
//   1
//
// A vector is one column. (Scion, arXiv 2502.07529, table 2; Schatten: algorithms.md 13.)
#include "llmc/norm/norm.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "llmc/core/error.h"
#include "llmc/device/sublists.h"
#include "llmc/norm/singular_values.h"

namespace lmo {

namespace {

constexpr double kFrobeniusEps = 1e-8;  // what the published normalised SGD adds to the norm

double largest_entry(std::span<const double> x) {
    double largest = 0.0;
    for (double value : x) largest = std::max(largest, std::fabs(value));
    return largest;
}

double sum_of_entries(std::span<const double> x) {
    double sum = 0.0;
    for (double value : x) sum += std::fabs(value);
    return sum;
}

double frobenius(std::span<const double> x) {
    const double scale = largest_entry(x);  // so that squares neither overflow nor vanish
    if (scale == 0.0) return 0.0;
    double sum = 0.0;
    for (double value : x) sum += value / scale * (value / scale);
    return scale * std::sqrt(sum);
}

// Leaves x alone: Adam brings its own scaling. As that bounds every entry by about 1, kappa and the
// measured norms are the sign norm's.
class NoNorm : public Norm {
  public:
    NormType type() const override { return NormType::none; }
    Cut cut() const override { return Cut::anywhere; }
    void check(const std::string&, const Shape&) const override {}
    void direction(Backend&, std::span<const Tensor>, const Tensor&) const override {}
    std::optional<FusedDirection> fused() const override { return FusedDirection{}; }
    size_t workspace_bytes(const Backend&, std::span<const Tensor>) const override { return 0; }
    double primal(Backend&, std::span<const double> x, const Shape&) const override {
        return largest_entry(x);
    }
    double dual(Backend&, std::span<const double> x, const Shape&) const override {
        return sum_of_entries(x);
    }
    double kappa(const Shape& shape) const override { return static_cast<double>(shape.count()); }
    double flops(const Shape&) const override { return 0.0; }
};

class SignNorm : public Norm {
  public:
    NormType type() const override { return NormType::sign; }
    Cut cut() const override { return Cut::anywhere; }
    void check(const std::string&, const Shape&) const override {}
    void direction(Backend& backend, std::span<const Tensor> x, const Tensor&) const override {
        backend.sign({x});
    }
    std::optional<FusedDirection> fused() const override {
        return FusedDirection{FusedDirection::Type::sign};
    }
    size_t workspace_bytes(const Backend&, std::span<const Tensor>) const override { return 0; }
    double primal(Backend&, std::span<const double> x, const Shape&) const override {
        return largest_entry(x);
    }
    double dual(Backend&, std::span<const double> x, const Shape&) const override {
        return sum_of_entries(x);
    }
    double kappa(const Shape& shape) const override { return static_cast<double>(shape.count()); }
    double flops(const Shape& shape) const override { return static_cast<double>(shape.count()); }
};

class FrobeniusNorm : public Norm {
  public:
    NormType type() const override { return NormType::frobenius; }
    void check(const std::string&, const Shape&) const override {}
    void direction(Backend& backend, std::span<const Tensor> x,
                   const Tensor& workspace) const override {
        backend.frobenius_normalize({x, kFrobeniusEps, workspace});
    }
    std::optional<FusedDirection> fused() const override {
        return FusedDirection{FusedDirection::Type::frobenius, kFrobeniusEps};
    }
    size_t workspace_bytes(const Backend& backend, std::span<const Tensor> x) const override {
        return backend.workspace_bytes(FrobeniusNormalize{x, kFrobeniusEps, {}});
    }
    double primal(Backend&, std::span<const double> x, const Shape&) const override {
        return frobenius(x);
    }
    double dual(Backend&, std::span<const double> x, const Shape&) const override {
        return frobenius(x);
    }
    double kappa(const Shape&) const override { return 1.0; }
    double flops(const Shape& shape) const override {  // square, add, scale
        return 3.0 * static_cast<double>(shape.count());
    }
};

// Frobenius norm in units of the root of the number of entries: a unit ball of entries of size 1.
class RmsNorm : public FrobeniusNorm {
  public:
    NormType type() const override { return NormType::rms; }
    double scale(const Shape& shape) const override {
        return std::sqrt(static_cast<double>(shape.count()));
    }
    double primal(Backend&, std::span<const double> x, const Shape& shape) const override {
        return frobenius(x) / scale(shape);
    }
    double dual(Backend&, std::span<const double> x, const Shape& shape) const override {
        return frobenius(x) * scale(shape);
    }
    double kappa(const Shape& shape) const override { return static_cast<double>(shape.count()); }
};

// The largest of the rows' (or columns') Euclidean norms.
class LineNorm : public Norm {
  public:
    explicit LineNorm(bool columns) : columns_(columns) {}
    NormType type() const override { return columns_ ? NormType::column : NormType::row; }
    Cut cut() const override { return columns_ ? Cut::nowhere : Cut::between_rows; }
    void check(const std::string&, const Shape&) const override {}
    void direction(Backend& backend, std::span<const Tensor> x, const Tensor&) const override {
        backend.line_normalize({x, columns_, kFrobeniusEps});
    }
    size_t workspace_bytes(const Backend&, std::span<const Tensor>) const override { return 0; }
    double primal(Backend&, std::span<const double> x, const Shape& shape) const override {
        return largest_entry(lines(x, shape));
    }
    double dual(Backend&, std::span<const double> x, const Shape& shape) const override {
        return sum_of_entries(lines(x, shape));
    }
    double kappa(const Shape& shape) const override {
        return static_cast<double>(columns_ ? shape.columns() : shape.rows());
    }
    double flops(const Shape& shape) const override {
        return 3.0 * static_cast<double>(shape.count());
    }

  private:
    // The norm of each row or column.
    std::vector<double> lines(std::span<const double> x, const Shape& shape) const {
        const size_t rows = static_cast<size_t>(shape.rows());
        const size_t columns = static_cast<size_t>(shape.columns());
        std::vector<double> norms, line;
        for (size_t i = 0; i < (columns_ ? columns : rows); ++i) {
            line.clear();
            for (size_t j = 0; j < (columns_ ? rows : columns); ++j) {
                line.push_back(columns_ ? x[j * columns + i] : x[i * columns + j]);
            }
            norms.push_back(frobenius(line));
        }
        return norms;
    }

    bool columns_;
};

void require_matrix(const std::string& tensor, const Shape& shape, const char* norm) {
    if (shape.rank() == 2) return;
    throw UsageError(tensor + " has shape " + to_string(shape) + ", but the " + norm +
                     " norm needs a matrix (two dimensions): narrow this group's match (for "
                     "example to role matrix) and let a group with another norm (sign, frobenius, "
                     "rms, none) take the tensor");
}

// (sum of s^p)^(1/p) of values s >= 0; the largest of them for an infinite p.
double p_norm(const std::vector<double>& values, double p) {
    const double top = largest_entry(values);
    if (top == 0.0 || std::isinf(p)) return top;
    double sum = 0.0;
    for (double value : values) sum += std::pow(value / top, p);
    return top * std::pow(sum, 1.0 / p);
}

class SchattenNorm : public Norm {
  public:
    explicit SchattenNorm(double p) : p_(p) {}
    NormType type() const override { return NormType::schatten; }
    void check(const std::string& tensor, const Shape& shape) const override {
        require_matrix(tensor, shape, "Schatten");
    }
    void direction(Backend& backend, std::span<const Tensor> x,
                   const Tensor& workspace) const override {
        backend.schatten_direction({x, p_, workspace});
    }
    size_t workspace_bytes(const Backend& backend, std::span<const Tensor> x) const override {
        return backend.workspace_bytes(SchattenDirection{x, p_, {}});
    }
    double primal(Backend& host, std::span<const double> x, const Shape& shape) const override {
        return p_norm(singular_values(host, x, shape), p_);
    }
    double dual(Backend& host, std::span<const double> x, const Shape& shape) const override {
        return p_norm(singular_values(host, x, shape), dual_exponent());
    }
    double kappa(const Shape& shape) const override {
        const double k = static_cast<double>(std::min(shape.rows(), shape.columns()));
        const double power = 1.0 / dual_exponent() - 1.0 / p_;
        return power > 0.0 ? std::pow(k, power) : 1.0;
    }
    // Eight sweeps of rotations of pairs of rows: a product, and two rows of l and of k changed.
    double flops(const Shape& shape) const override {
        const double k = static_cast<double>(std::min(shape.rows(), shape.columns()));
        const double l = static_cast<double>(std::max(shape.rows(), shape.columns()));
        return 8.0 * 0.5 * k * k * (8.0 * l + 6.0 * k) + 2.0 * k * k * l;
    }

  private:
    double dual_exponent() const {
        if (std::isinf(p_)) return 1.0;
        return p_ == 1.0 ? std::numeric_limits<double>::infinity() : p_ / (p_ - 1.0);
    }
    double p_;
};

class SpectralNorm : public Norm {
  public:
    explicit SpectralNorm(NewtonSchulzSet set) : set_(std::move(set)) {}

    NormType type() const override { return NormType::spectral; }

    void check(const std::string& tensor, const Shape& shape) const override {
        require_matrix(tensor, shape, "spectral");
    }

    void direction(Backend& backend, std::span<const Tensor> x,
                   const Tensor& workspace) const override {
        for_equal_shapes(x, [&](std::span<const Tensor> run) {
            backend.newton_schulz(operation(backend, run, workspace));
        });
    }

    bool update(Backend& backend, const Momentum& momentum, const Apply& apply,
                const Tensor& workspace) const override {
        for_equal_shapes(momentum.x, [&](std::span<const Tensor> run) {
            const size_t first = static_cast<size_t>(run.data() - momentum.x.data());
            backend.spectral_update({some_of(momentum, first, run.size()),
                                     operation(backend, {}, workspace),
                                     some_of(apply, first, run.size())});
        });
        return true;
    }

    size_t workspace_bytes(const Backend& backend, std::span<const Tensor> x) const override {
        size_t bytes = 0;
        for_equal_shapes(x, [&](std::span<const Tensor> run) {
            bytes = std::max(bytes, backend.workspace_bytes(operation(backend, run, {})));
        });
        return bytes;
    }

    double primal(Backend& host, std::span<const double> x, const Shape& shape) const override {
        return singular_values(host, x, shape).front();
    }
    double dual(Backend& host, std::span<const double> x, const Shape& shape) const override {
        const std::vector<double> values = singular_values(host, x, shape);
        return std::accumulate(values.begin(), values.end(), 0.0);
    }
    double kappa(const Shape& shape) const override {
        return static_cast<double>(std::min(shape.rows(), shape.columns()));
    }

    // Per step, with k the shorter side and l the longer: A = X X^T and (bA + cA^2) X take 2 k^2 l
    // each, A^2 takes 2 k^3 (none when c is 0).
    double flops(const Shape& shape) const override {
        const double k = static_cast<double>(std::min(shape.rows(), shape.columns()));
        const double l = static_cast<double>(std::max(shape.rows(), shape.columns()));
        double total = 0.0;
        for (const NewtonSchulzStep& step : set_.steps) {
            total += 4.0 * k * k * l + (step.c == 0.0 ? 0.0 : 2.0 * k * k * k);
        }
        return total;
    }
    double executed_flops(const Backend& backend, const Shape& shape) const override {
        const Tensor x{nullptr, DType::f32, shape};
        return backend.executed_flops(operation(backend, {&x, 1}, {}));
    }

  private:
    NewtonSchulz operation(const Backend& backend, std::span<const Tensor> x,
                           const Tensor& workspace) const {
        return {x,         set_.steps,   set_.norm_scale,
                set_.eps,  workspace,    set_.inner.value_or(backend.preferred_newton_schulz()),
                set_.form, set_.restarts};
    }

    // Calls run(part) for each longest run of neighbours of one shape: one batch of products.
    template <typename Run>
    static void for_equal_shapes(std::span<const Tensor> x, Run run) {
        for (size_t begin = 0, end; begin < x.size(); begin = end) {
            for (end = begin + 1; end < x.size() && x[end].shape == x[begin].shape;) ++end;
            run(x.subspan(begin, end - begin));
        }
    }

    NewtonSchulzSet set_;
};

}  // namespace

std::string to_string(NormType type) {
    switch (type) {
        case NormType::none:
            return "none";
        case NormType::sign:
            return "sign";
        case NormType::frobenius:
            return "frobenius";
        case NormType::rms:
            return "rms";
        case NormType::row:
            return "row";
        case NormType::column:
            return "column";
        case NormType::spectral:
            return "spectral";
        case NormType::schatten:
            return "schatten";
    }
    return "unknown";
}

std::unique_ptr<Norm> make_norm(const NormConfig& config) {
    switch (config.type) {
        case NormType::none:
            return std::make_unique<NoNorm>();
        case NormType::sign:
            return std::make_unique<SignNorm>();
        case NormType::frobenius:
            return std::make_unique<FrobeniusNorm>();
        case NormType::rms:
            return std::make_unique<RmsNorm>();
        case NormType::row:
        case NormType::column:
            return std::make_unique<LineNorm>(config.type == NormType::column);
        case NormType::schatten:
            return std::make_unique<SchattenNorm>(config.p);
        case NormType::spectral:
            break;
    }
    assert(!config.newton_schulz.steps.empty() && "a spectral norm without Newton-Schulz steps");
    return std::make_unique<SpectralNorm>(config.newton_schulz);
}

}  // namespace lmo
