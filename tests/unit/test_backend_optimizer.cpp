// The optimizer's operations against the formulas of llmc/device/backend.h, element by element.
#include <functional>

#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

const std::vector<DType> master_types = {DType::f64, DType::f32};

// Lists of tensors of several sizes, some longer than a block of any implementation.
const std::vector<int64_t> counts = {1, 40000, 63, 70001};

class OptimizerOpsTest : public BackendTest {
  protected:
    std::vector<Tensor> put_list(DType type, uint64_t seed, double scale = 1.0,
                                 bool positive = false) {
        std::vector<Tensor> list;
        for (size_t i = 0; i < counts.size(); ++i) {
            Values values = random_values(counts[i], seed + 100 * i, scale);
            if (positive) {
                for (double& value : values) value = std::abs(value);
            }
            list.push_back(put(type, {counts[i]}, values));
        }
        return list;
    }

    std::vector<Values> get_list(const std::vector<Tensor>& list) {
        std::vector<Values> values;
        for (const Tensor& tensor : list) values.push_back(get(tensor));
        return values;
    }

    // Each element within a few roundings of the formula in double, relative to `size`.
    void expect_elements(DType type, const Values& actual, const Values& exact,
                         const Values& size) {
        ASSERT_EQ(actual.size(), exact.size());
        const double allowed = (type == DType::f64 ? 8 : 12) * half_ulp(type);
        for (size_t i = 0; i < exact.size(); ++i) {
            ASSERT_LE(std::abs(actual[i] - exact[i]), allowed * size[i]) << "element " << i;
        }
    }
};

// ---- momentum
// ------------------------------------------------------------------------------------

TEST_P(OptimizerOpsTest, Momentum) {
    const double u_m = 0.9025, u_g = 1.95, m_m = 0.95, m_g = 1.0, factor = 0.37;
    for (const DType type : master_types) {
        for (const bool clipped : {false, true}) {
            const auto x = put_list(type, 1), m = put_list(type, 2);
            const auto old_x = get_list(x), old_m = get_list(m);
            const Momentum op{
                x, m, clipped ? put(DType::f64, {1}, {factor}) : Tensor{}, u_m, u_g, m_m, m_g};
            backend_->momentum(op);
            for (size_t i = 0; i < x.size(); ++i) {
                Values new_x, new_m, size;
                for (size_t j = 0; j < old_x[i].size(); ++j) {
                    const double g = (clipped ? factor : 1.0) * old_x[i][j], mj = old_m[i][j];
                    new_x.push_back(u_m * mj + u_g * g);
                    new_m.push_back(m_m * mj + m_g * g);
                    size.push_back(2 * (std::abs(g) + std::abs(mj)));
                }
                expect_elements(type, get(x[i]), new_x, size);
                expect_elements(type, get(m[i]), new_m, size);
            }
        }
    }
}

TEST_P(OptimizerOpsTest, MomentumWithoutState) {
    const std::vector<Tensor> x = {put(DType::f64, {3}, {1, -2, 4})};
    backend_->momentum({x, {}, put(DType::f64, {1}, {0.5}), 7, 0.25, 7, 7});
    EXPECT_EQ(get(x[0]), (Values{0.125, -0.25, 0.5}));
}

// ---- Adam
// ----------------------------------------------------------------------------------------

TEST_P(OptimizerOpsTest, AdamBothPlacesOfEps) {
    const double beta1 = 0.8, beta2 = 0.999, eps = 1e-3, factor = 0.7;
    for (const DType type : master_types) {
        for (const bool inside : {false, true}) {
            for (const double step : {0.0, 1000.0}) {
                const auto x = put_list(type, 1), m = put_list(type, 2);
                const auto v = put_list(type, 3, 1.0, true);
                const auto old_x = get_list(x), old_m = get_list(m), old_v = get_list(v);
                backend_->adam({x, m, v, put(DType::f64, {1}, {factor}),
                                put(DType::f64, {1}, {step}), beta1, beta2, eps, inside});
                const double t = step + 1;
                const double c1 = 1 - std::pow(beta1, t), c2 = 1 - std::pow(beta2, t);
                for (size_t i = 0; i < x.size(); ++i) {
                    Values new_x, new_m, new_v, size_x, size_m;
                    for (size_t j = 0; j < old_x[i].size(); ++j) {
                        const double g = factor * old_x[i][j];
                        const double mj = beta1 * old_m[i][j] + (1 - beta1) * g;
                        const double vj = beta2 * old_v[i][j] + (1 - beta2) * g * g;
                        new_m.push_back(mj);
                        new_v.push_back(vj);
                        new_x.push_back(inside ? mj / (std::sqrt(vj) + eps) * std::sqrt(c2) / c1
                                               : mj / c1 / (std::sqrt(vj / c2) + eps));
                        const double size = std::abs(old_m[i][j]) + std::abs(g);
                        size_m.push_back(size);
                        size_x.push_back(std::abs(new_x[j]) * (1 + size / std::abs(mj)));
                    }
                    expect_elements(type, get(m[i]), new_m, size_m);
                    expect_elements(type, get(v[i]), new_v, new_v);
                    expect_elements(type, get(x[i]), new_x, size_x);
                }
            }
        }
    }
}

TEST_P(OptimizerOpsTest, AdamOfZerosIsZero) {
    const std::vector<Tensor> x = {put(DType::f32, {2}, {0, 0})},
                              m = {put(DType::f32, {2}, {0, 0})},
                              v = {put(DType::f32, {2}, {0, 0})};
    backend_->adam({x, m, v, Tensor{}, put(DType::f64, {1}, {0}), 0.9, 0.999, 1e-8, false});
    EXPECT_EQ(get(x[0]), (Values{0, 0}));
}

// ---- sign, Frobenius
// -----------------------------------------------------------------------------

TEST_P(OptimizerOpsTest, Sign) {
    for (const DType type : master_types) {
        const std::vector<Tensor> x = {put(type, {6}, {3, -1e-30, 0, -0.0, INFINITY, NAN})};
        backend_->sign({x});
        const Values out = get(x[0]);
        for (int i = 0; i < 5; ++i) EXPECT_EQ(out[i], (Values{1, -1, 0, 0, 1})[i]);
        EXPECT_TRUE(std::isnan(out[5]));
    }
}

TEST_P(OptimizerOpsTest, FrobeniusNormalizeEachByItsOwnNorm) {
    for (const DType type : master_types) {
        const auto x = put_list(type, 1);
        const auto old = get_list(x);
        FrobeniusNormalize op{x, 1e-3, {}};
        give_workspace(op);
        backend_->frobenius_normalize(op);
        for (size_t i = 0; i < x.size(); ++i) {
            double squares = 0;
            for (const double value : old[i]) squares += value * value;
            Values exact = old[i];
            for (double& value : exact) value /= std::sqrt(squares) + 1e-3;
            Values size = exact;
            for (double& value : size) value = std::abs(value);
            // The norm is a sum of many squares: its own rounding comes on top in fp64.
            if (type == DType::f64) {
                EXPECT_LE(largest_difference(get(x[i]), exact), 1e-13 * largest(exact));
            } else {
                expect_elements(type, get(x[i]), exact, size);
            }
        }
    }
    const std::vector<Tensor> zero = {put(DType::f32, {3}, {0, 0, 0})};
    FrobeniusNormalize op{zero, 1e-8, {}};
    give_workspace(op);
    backend_->frobenius_normalize(op);
    EXPECT_EQ(get(zero[0]), (Values{0, 0, 0}));
}

// ---- apply
// ---------------------------------------------------------------------------------------

TEST_P(OptimizerOpsTest, ApplyWithRadiusDecayAndCopies) {
    const std::vector<double> radius = {1, 0.2, 3, 0.5}, decay = {0, 0.1, 0.01, 0};
    const double rate = 1e-2, scale = 0.5;
    for (const DType type : master_types) {
        for (const DType copy_type : {type, DType::bf16}) {
            const auto w = put_list(type, 1), x = put_list(type, 2);
            const auto old_w = get_list(w), old_x = get_list(x);
            std::vector<Tensor> copies;
            for (const int64_t count : counts) copies.push_back(blank(copy_type, {count}));
            Apply op{w, x, copies, put(DType::f64, {1}, {rate}), scale, radius, decay};
            backend_->apply(op);
            for (size_t i = 0; i < w.size(); ++i) {
                const double lr = scale * rate;
                Values exact, size;
                for (size_t j = 0; j < old_w[i].size(); ++j) {
                    const double step = lr * radius[i] * old_x[i][j];
                    exact.push_back((1 - lr * decay[i]) * old_w[i][j] - step);
                    size.push_back(std::abs(old_w[i][j]) + std::abs(step));
                }
                expect_elements(type, get(w[i]), exact, size);
                EXPECT_EQ(get(copies[i]), round_to(copy_type, get(w[i])));
            }
            const auto before = get_list(w);
            op.copies = {};
            op.lr_scale = 0;
            backend_->apply(op);
            EXPECT_EQ(get_list(w), before);
        }
    }
}

// ---- Newton-Schulz
// -------------------------------------------------------------------------------

Values multiply(const Values& a, const Values& b, int64_t m, int64_t k, int64_t n) {
    Values c(m * n, 0.0);
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t l = 0; l < k; ++l) {
            for (int64_t j = 0; j < n; ++j) c[i * n + j] += a[i * k + l] * b[l * n + j];
        }
    }
    return c;
}

Values transposed(const Values& a, int64_t m, int64_t n) {
    Values t(a.size());
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) t[j * m + i] = a[i * n + j];
    }
    return t;
}

// The equations in double; `rounded` is applied to every intermediate matrix.
Values newton_schulz(Values x, int64_t m, int64_t n, const std::vector<NewtonSchulzStep>& steps,
                     double norm_scale, double eps, const std::function<Values(Values)>& rounded) {
    const bool tall = m > n;
    if (tall) {
        x = transposed(x, m, n);
        std::swap(m, n);
    }
    double squares = 0;
    for (const double value : x) squares += value * value;
    for (double& value : x) value /= std::sqrt(squares) * norm_scale + eps;
    x = rounded(x);
    for (const auto& [a, b, c] : steps) {
        const Values gram = rounded(multiply(x, transposed(x, m, n), m, n, m));
        Values mixed = rounded(multiply(gram, gram, m, m, m));
        for (int64_t i = 0; i < m * m; ++i) mixed[i] = b * gram[i] + c * mixed[i];
        mixed = rounded(mixed);
        Values next = multiply(mixed, x, m, m, n);
        for (int64_t i = 0; i < m * n; ++i) next[i] += a * x[i];
        x = rounded(next);
    }
    return tall ? transposed(x, m, n) : x;
}

const std::vector<NewtonSchulzStep> jordan(5, {3.4445, -4.7750, 2.0315});

TEST_P(OptimizerOpsTest, NewtonSchulzOfAllShapes) {
    for (const auto& [m, n] : {std::pair{1, 1}, std::pair{1, 7}, std::pair{9, 1}, std::pair{40, 40},
                               std::pair{33, 130}, std::pair{130, 33}, std::pair{96, 70}}) {
        for (const DType type : master_types) {
            std::vector<Tensor> list;
            for (int i = 0; i < 3; ++i)
                list.push_back(put(type, {m, n}, random_values(m * n, 7 + i)));
            const auto old = get_list(list);
            NewtonSchulz op{list, jordan, 1.01, 1e-7, {}};
            give_workspace(op);
            backend_->newton_schulz(op);
            for (int i = 0; i < 3; ++i) {
                const auto in_double = [](Values v) { return v; };
                const auto in_float = [](Values v) { return round_to(DType::f32, std::move(v)); };
                const Values exact = newton_schulz(old[i], m, n, jordan, 1.01, 1e-7, in_double);
                const Values plain = newton_schulz(old[i], m, n, jordan, 1.01, 1e-7, in_float);
                const double error = largest_difference(get(list[i]), exact);
                // The plain sums here are in double: leave room for those in float.
                if (type == DType::f64) {
                    EXPECT_LE(error, 1e-12 * largest(exact)) << m << " x " << n;
                } else {
                    EXPECT_LE(error, 4 * largest_difference(plain, exact) + 1e-5 * largest(exact));
                }
            }
        }
    }
}

// On a matrix with orthogonal rows scaled by s, the iteration acts on s alone.
TEST_P(OptimizerOpsTest, NewtonSchulzIsTheScalarMapOnSingularValues) {
    const Values s = {3.0, 1.0, 0.25, 0.01};
    double norm = 0;
    for (const double value : s) norm += value * value;
    norm = std::sqrt(norm);
    const double angle = 0.7;  // rotates columns 0, 4 and 1, 5: the right factor is not trivial
    Values x(4 * 6, 0.0);
    for (int i = 0; i < 4; ++i) {
        const double c = i < 2 ? std::cos(angle) : 1.0;
        x[i * 6 + i] = s[i] * c;
        if (i < 2) x[i * 6 + i + 4] = s[i] * std::sin(angle);
    }
    const std::vector<Tensor> list = {put(DType::f64, {4, 6}, x)};
    NewtonSchulz op{list, jordan, 1.0, 0.0, {}};
    give_workspace(op);
    backend_->newton_schulz(op);
    const Values out = get(list[0]);
    for (int i = 0; i < 4; ++i) {
        double y = s[i] / norm;
        for (const auto& [a, b, c] : jordan) y = a * y + b * y * y * y + c * y * y * y * y * y;
        const double length = std::hypot(out[i * 6 + i], i < 2 ? out[i * 6 + i + 4] : 0.0);
        EXPECT_NEAR(length, y, 1e-13);
    }
}

TEST_P(OptimizerOpsTest, NewtonSchulzOfZeroIsZeroAndOfNanIsNan) {
    for (const DType type : master_types) {
        const std::vector<Tensor> list = {put(type, {3, 5}, Values(15, 0.0))};
        NewtonSchulz op{list, jordan, 1.0, 1e-7, {}};
        give_workspace(op);
        backend_->newton_schulz(op);
        EXPECT_EQ(get(list[0]), Values(15, 0.0));
    }
    const std::vector<Tensor> list = {put(DType::f32, {2, 2}, {1, NAN, 0, 1})};
    NewtonSchulz op{list, jordan, 1.0, 1e-7, {}};
    give_workspace(op);
    backend_->newton_schulz(op);
    EXPECT_TRUE(std::isnan(get(list[0])[0]));
}

// ---- all
// -----------------------------------------------------------------------------------------

TEST_P(OptimizerOpsTest, EqualBitsEachTime) {
    const auto once = [&] {
        const auto x = put_list(DType::f32, 1), m = put_list(DType::f32, 2);
        backend_->momentum({x, m, Tensor{}, 0.9, 0.1, 0.99, 0.01});
        FrobeniusNormalize normalise{x, 1e-8, {}};
        give_workspace(normalise);
        backend_->frobenius_normalize(normalise);
        const std::vector<Tensor> matrices = {x[3].slice(0, {100, 150}),
                                              x[3].slice(15000, {100, 150})};
        NewtonSchulz op{matrices, jordan, 1.0, 1e-7, {}};
        give_workspace(op);
        backend_->newton_schulz(op);
        return get_list(x);
    };
    const auto first = once();
    EXPECT_EQ(once(), first);
    use_threads(1);
    const auto single = once();
    for (size_t i = 0; i < first.size(); ++i) {
        EXPECT_LE(largest_difference(first[i], single[i]), 1e-4 * largest(first[i]));
    }
}

LMO_ON_ALL_BACKENDS(OptimizerOpsTest);

}  // namespace
}  // namespace lmo
