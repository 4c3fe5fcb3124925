// The optimizer's operations against the formulas of llmc/device/backend.h, element by element.
#include <functional>

#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

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
    for (const DType type : master_types()) {
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
    for (const DType type : master_types()) {
        const std::vector<Tensor> x = {put(type, {3}, {1, -2, 4})};
        backend_->momentum({x, {}, put(DType::f64, {1}, {0.5}), 7, 0.25, 7, 7});
        EXPECT_EQ(get(x[0]), (Values{0.125, -0.25, 0.5}));
        backend_->momentum({x, {}, Tensor{}, 7, 8, 7, 7});  // no factor: 1
        EXPECT_EQ(get(x[0]), (Values{1, -2, 4}));
    }
}

// ---- Adam
// ----------------------------------------------------------------------------------------

TEST_P(OptimizerOpsTest, AdamBothPlacesOfEps) {
    const double beta1 = 0.8, beta2 = 0.999, eps = 1e-3, factor = 0.7;
    for (const DType type : master_types()) {
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
    for (const DType type : master_types()) {
        const std::vector<Tensor> x = {put(type, {6}, {3, -1e-30, 0, -0.0, INFINITY, NAN})};
        backend_->sign({x});
        const Values out = get(x[0]);
        for (int i = 0; i < 5; ++i) EXPECT_EQ(out[i], (Values{1, -1, 0, 0, 1})[i]);
        EXPECT_TRUE(std::isnan(out[5]));
    }
}

TEST_P(OptimizerOpsTest, FrobeniusNormalizeEachByItsOwnNorm) {
    for (const DType type : master_types()) {
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
    for (const DType type : master_types()) {
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

// ---- all
// -----------------------------------------------------------------------------------------

TEST_P(OptimizerOpsTest, HugeAndTinyValues) {
    const Values values = {1e30, -3e30, 1e-30, -2e-30, 1, 0};
    const auto tensor = [&](double scale) {
        Values scaled = values;
        for (double& value : scaled) value *= scale;
        return std::vector<Tensor>{put(DType::f32, {6}, scaled)};
    };
    const auto x = tensor(1), m = tensor(-0.5);
    const Values old_x = get(x[0]), old_m = get(m[0]);
    backend_->momentum({x, m, put(DType::f64, {1}, {0.25}), 0.9, 0.1, 0.75, 0.25});
    Values exact, size;
    for (int i = 0; i < 6; ++i) {
        exact.push_back(0.9 * old_m[i] + 0.1 * 0.25 * old_x[i]);
        size.push_back(std::abs(old_m[i]));
    }
    expect_elements(DType::f32, get(x[0]), exact, size);

    // Adam's direction of a first gradient is its sign, as far as its square is a float.
    const std::vector<Tensor> g = {put(DType::f32, {4}, {1e15, -1e15, 1e-15, -1e-15})};
    const std::vector<Tensor> first = {put(DType::f32, {4}, {0, 0, 0, 0})};
    const std::vector<Tensor> second = {put(DType::f32, {4}, {0, 0, 0, 0})};
    backend_->adam({g, first, second, Tensor{}, put(DType::f64, {1}, {0}), 0.9, 0.999, 0, false});
    expect_elements(DType::f32, get(g[0]), {1, -1, 1, -1}, {1, 1, 1, 1});

    const std::vector<Tensor> large = {put(DType::f32, {2}, {3e37, -4e37})};
    FrobeniusNormalize op{large, 1e-8, {}};
    give_workspace(op);
    backend_->frobenius_normalize(op);
    expect_elements(DType::f32, get(large[0]), {0.6, -0.8}, {1, 1});
}

TEST_P(OptimizerOpsTest, NanStaysWhereItBelongs) {
    const auto list = [&](double bad) {
        return std::vector<Tensor>{put(DType::f32, {3}, {1, bad, 2}), put(DType::f32, {2}, {3, 4})};
    };
    for (const double bad : {double(NAN), double(INFINITY)}) {
        const auto x = list(bad), m = list(1), v = list(1), w = list(1);
        backend_->adam({x, m, v, Tensor{}, put(DType::f64, {1}, {2}), 0.9, 0.99, 1e-8, false});
        const std::vector<double> ones = {1, 1};
        backend_->apply({w, x, {}, put(DType::f64, {1}, {0.1}), 1, ones, ones});
        for (const auto* result : {&x, &w}) {
            const Values out = get((*result)[0]);
            EXPECT_TRUE(std::isfinite(out[0]) && std::isnan(out[1]) && std::isfinite(out[2]));
        }
        const auto y = list(NAN);
        FrobeniusNormalize op{y, 0, {}};
        give_workspace(op);
        backend_->frobenius_normalize(op);
        for (const double value : get(y[0])) EXPECT_TRUE(std::isnan(value));
        EXPECT_EQ(get(y[1]), round_to(DType::f32, {0.6, 0.8}));
    }
}

TEST_P(OptimizerOpsTest, EqualBitsEachTime) {
    const auto once = [&] {
        const auto x = put_list(DType::f32, 1), m = put_list(DType::f32, 2);
        backend_->momentum({x, m, Tensor{}, 0.9, 0.1, 0.99, 0.01});
        FrobeniusNormalize normalise{x, 1e-8, {}};
        give_workspace(normalise);
        backend_->frobenius_normalize(normalise);
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
