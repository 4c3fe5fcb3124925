// Measured norms against matrices whose singular values are known, the analyzer on a function whose
// smoothness is known, the fit on curves that are known.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "llmc/core/error.h"
#include "llmc/core/random.h"
#include "llmc/device/arena.h"
#include "llmc/norm/singular_values.h"
#include "llmc/smoothness/analyzer.h"
#include "llmc/smoothness/fit.h"

namespace lmo {
namespace {

using Values = std::vector<double>;

Values random_values(int64_t count, uint64_t seed) {
    Values values(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) values[i] = random_normal(seed, 0, static_cast<uint64_t>(i));
    return values;
}

// Multiplies a row-major matrix [rows, columns] from the left by I - 2 v v^T / v^T v.
void reflect_rows(Values& a, int64_t rows, int64_t columns, const Values& v) {
    const double length = std::inner_product(v.begin(), v.end(), v.begin(), 0.0);
    for (int64_t j = 0; j < columns; ++j) {
        double product = 0.0;
        for (int64_t i = 0; i < rows; ++i) product += v[i] * a[i * columns + j];
        for (int64_t i = 0; i < rows; ++i) a[i * columns + j] -= 2.0 * v[i] * product / length;
    }
}

Values transpose(const Values& a, int64_t rows, int64_t columns) {
    Values result(a.size());
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) result[j * rows + i] = a[i * columns + j];
    }
    return result;
}

// U diag(s) V^T with orthogonal U, V made of a few reflections each.
Values with_singular_values(const Values& s, int64_t rows, int64_t columns, uint64_t seed) {
    Values a(static_cast<size_t>(rows * columns), 0.0);
    for (size_t i = 0; i < s.size(); ++i) a[i * columns + i] = s[i];
    for (uint64_t k = 0; k < 3; ++k) {
        reflect_rows(a, rows, columns, random_values(rows, seed + k));
        a = transpose(a, rows, columns);
        reflect_rows(a, columns, rows, random_values(columns, seed + 10 + k));
        a = transpose(a, columns, rows);
    }
    return a;
}

class SingularValues : public testing::Test {
  protected:
    void expect(Values s, int64_t rows, int64_t columns) {
        const Values a = with_singular_values(s, rows, columns, 7);
        const Values found = singular_values(*backend_, a, {rows, columns});
        std::sort(s.begin(), s.end(), std::greater<>());
        ASSERT_EQ(found.size(), s.size());
        for (size_t i = 0; i < s.size(); ++i) {
            EXPECT_NEAR(found[i], s[i], 1e-7 * s[0]) << rows << "x" << columns << ", value " << i;
        }
        const auto norm = make_norm({NormType::spectral, {{{1.5, -0.5, 0.0}}, 1.0, 1e-7}});
        const double nuclear = std::accumulate(s.begin(), s.end(), 0.0);
        EXPECT_NEAR(norm->primal(*backend_, a, {rows, columns}), s[0], 1e-12 * s[0]);
        EXPECT_NEAR(norm->dual(*backend_, a, {rows, columns}), nuclear, 1e-5 * nuclear);
    }

    std::unique_ptr<Backend> backend_ = make_cpu_backend(2);
};

TEST_F(SingularValues, OfEveryShape) {
    expect({3.0}, 1, 1);
    expect({2.0}, 1, 9);
    expect({2.0}, 9, 1);
    expect({5.0, 0.25}, 2, 2);
    for (const auto& [rows, columns] : {std::pair{40, 40}, {40, 97}, {97, 40}, {130, 64}}) {
        Values s;
        for (int i = 0; i < std::min(rows, columns); ++i) s.push_back(1.0 + 0.37 * i);
        expect(s, rows, columns);
    }
}

TEST_F(SingularValues, EqualTinyAndZeroOnes) {
    expect(Values(50, 0.7), 50, 80);  // an orthogonal matrix: Muon's update
    Values decaying, low_rank(60, 0.0);
    for (int i = 0; i < 60; ++i) decaying.push_back(std::pow(10.0, -0.2 * i));
    low_rank[0] = 3.0;
    low_rank[1] = 3.0;
    low_rank[2] = 1e-3;
    expect(decaying, 60, 64);
    expect(low_rank, 64, 60);
    Values steep, few(128, 0.0);  // most of them below the rounding errors of the largest
    for (int i = 0; i < 128; ++i) steep.push_back(std::pow(10.0, -0.3 * i));
    for (int i = 0; i < 20; ++i) few[i] = 1.0 + 0.1 * i;
    expect(steep, 128, 256);
    expect(few, 256, 128);
    for (double value : singular_values(*backend_, Values(20, 0.0), {4, 5})) EXPECT_EQ(value, 0.0);
    expect({1e-30, 2e-30, 5e-31}, 3, 7);
    expect({1e30, 2e30, 5e29}, 7, 3);
}

// Gram matrices of few rows of very different sizes: most eigenvalues are rounding errors.
TEST(Eigenvalues, ConvergeWhereMostAreNothing) {
    for (int trial = 0; trial < 400; ++trial) {
        const int n = 20 + trial % 60, rank = 1 + trial % 9;
        Values b = random_values(n * rank, static_cast<uint64_t>(trial)), a;
        for (size_t i = 0; i < b.size(); ++i) b[i] *= std::pow(10.0, -(trial / 7 % 12) * (i % rank * 1.0));
        double trace = 0.0;
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j < n; ++j) {
                a.push_back(std::inner_product(&b[i * rank], &b[i * rank] + rank, &b[j * rank], 0.0));
            }
            trace += a[i * n + i];
        }
        const Values found = symmetric_eigenvalues(a, n);
        EXPECT_NEAR(std::accumulate(found.begin(), found.end(), 0.0), trace, 1e-12 * trace) << trial;
    }
}

TEST_F(SingularValues, SameBitsAgain) {
    const Values a = random_values(300 * 320, 3);
    EXPECT_EQ(singular_values(*backend_, a, {300, 320}), singular_values(*backend_, a, {300, 320}));
}

TEST_F(SingularValues, NotFiniteIsAnError) {
    Values a = random_values(12 * 12, 3);
    a[5] = std::nan("");
    EXPECT_THROW(singular_values(*backend_, a, {12, 12}), Error);
}

TEST_F(SingularValues, NormsOfTheOthers) {
    const Values x = {3.0, -4.0, 0.0, 12.0};
    const auto sign = make_norm({NormType::sign, {}});
    const auto frobenius = make_norm({NormType::frobenius, {}});
    EXPECT_EQ(sign->primal(*backend_, x, {2, 2}), 12.0);
    EXPECT_EQ(sign->dual(*backend_, x, {2, 2}), 19.0);
    EXPECT_DOUBLE_EQ(frobenius->primal(*backend_, x, {2, 2}), 13.0);
    EXPECT_DOUBLE_EQ(frobenius->dual(*backend_, x, {2, 2}), 13.0);
}

// f = sum over matrices of c/2 ||W||_F^2 has the gradient c W: in the Frobenius norm K of one
// matrix is c exactly. The "other batch" adds a constant to the gradient.
class AnalyzerTest : public testing::Test {
  protected:
    AnalyzerTest() {
        parameters_.add({"a", {6, 4}, Role::matrix, "", 0.02});
        parameters_.add({"gain", {4}, Role::gain, "", 0.0});
        parameters_.add({"b", {3, 5}, Role::matrix, "", 0.02});
        for (ParameterBuffer* buffer : {&weights_, &gradients_}) {
            *buffer = {&parameters_, arena_.take("test", DType::f32, {parameters_.buffer_length()})};
        }
    }

    void fill(const ParameterBuffer& buffer, int index, const Values& values) {
        const std::vector<float> single(values.begin(), values.end());
        backend_->copy_in(buffer[index], single.data());
    }

    std::unique_ptr<Backend> backend_ = make_cpu_backend(1);
    Arena arena_{*backend_};
    ParameterList parameters_;
    ParameterBuffer weights_, gradients_;
};

TEST_F(AnalyzerTest, KnownSmoothness) {
    constexpr double kA = 2.0, kB = 8.0;
    SmoothnessAnalyzer analyzer(*backend_, *backend_, make_norm({NormType::frobenius, {}}), parameters_);
    const auto set = [&](double a, double b, double gradient_shift) {
        fill(weights_, 0, Values(24, a));
        fill(weights_, 1, Values(4, a * b));  // gains do not count
        fill(weights_, 2, Values(15, b));
        fill(gradients_, 0, Values(24, kA * a + gradient_shift));
        fill(gradients_, 1, Values(4, 1e6 * a));
        fill(gradients_, 2, Values(15, kB * b));
    };
    set(1.0, 0.5, 0.0);
    analyzer.before(weights_, gradients_);
    set(1.25, 0.75, 0.0);
    analyzer.after(weights_, gradients_);
    set(1.25, 0.75, 0.5);
    const SmoothnessSample sample = analyzer.other_batch(gradients_);
    ASSERT_EQ(sample.layers.size(), 2u);
    EXPECT_EQ(sample.layers[0].name, "a");
    EXPECT_NEAR(sample.layers[0].gradient_change, kA * sample.layers[0].weight_change, 1e-6);
    EXPECT_NEAR(sample.layers[1].gradient_change, kB * sample.layers[1].weight_change, 1e-6);
    EXPECT_NEAR(sample.layers[0].noise_change, 0.5 * std::sqrt(24.0), 1e-6);
    EXPECT_EQ(sample.layers[1].noise_change, 0.0);
    EXPECT_NEAR(sample.weight_change(), 0.25 * std::sqrt(24.0), 1e-6);  // the larger
    EXPECT_NEAR(sample.gradient_change(), 0.5 * std::sqrt(24.0) + 2.0 * std::sqrt(15.0), 1e-6);
    EXPECT_TRUE(sample.moved());
}

TEST_F(AnalyzerTest, WeightsThatStandStill) {
    SmoothnessAnalyzer analyzer(*backend_, *backend_, make_norm({NormType::sign, {}}), parameters_);
    backend_->zero(weights_.flat);
    backend_->zero(gradients_.flat);
    analyzer.before(weights_, gradients_);
    analyzer.after(weights_, gradients_);
    EXPECT_FALSE(analyzer.other_batch(gradients_).moved());
}

TEST_F(AnalyzerTest, WhatIsNotFiniteHasNoNorm) {
    SmoothnessAnalyzer analyzer(*backend_, *backend_, make_norm({NormType::spectral, {{{1, 0, 0}}, 1, 0}}),
                                parameters_);
    backend_->zero(weights_.flat);
    backend_->zero(gradients_.flat);
    analyzer.before(weights_, gradients_);
    fill(weights_, 0, Values(24, 1.0));
    fill(weights_, 2, Values(15, std::nan("")));
    fill(gradients_, 2, Values(15, HUGE_VAL));
    analyzer.after(weights_, gradients_);
    const SmoothnessSample sample = analyzer.other_batch(gradients_);
    EXPECT_NEAR(sample.layers[0].weight_change, std::sqrt(24.0), 1e-9);
    EXPECT_TRUE(std::isnan(sample.weight_change()));
    EXPECT_TRUE(std::isnan(sample.gradient_change()));
    EXPECT_FALSE(sample.moved());
}

std::vector<SmoothnessPoint> curve(double K0, double K1, double K_rho, double rho, double noise) {
    std::vector<SmoothnessPoint> points;
    for (int i = 0; i < 400; ++i) {
        const double delta = 5.0 - 0.01 * i;
        const double error = noise * random_normal(5, 0, static_cast<uint64_t>(i));
        points.push_back({i, delta, K0 + K1 * delta + K_rho * std::pow(delta, rho) + error});
    }
    return points;
}

TEST(SmoothnessFit, RecoversACurve) {
    const SmoothnessFit fit = fit_smoothness(curve(7.0, -2.0, 3.0, 2.0, 0.0), {});
    EXPECT_NEAR(fit.K0, 7.0, 1e-9);
    EXPECT_NEAR(fit.K1, -2.0, 1e-9);
    EXPECT_NEAR(fit.K_rho, 3.0, 1e-9);
    EXPECT_NEAR(fit.r2, 1.0, 1e-12);
    EXPECT_EQ(fit.points, 392);  // 400 less the extreme hundredths
    ASSERT_TRUE(fit.delta_star());
    EXPECT_NEAR(*fit.delta_star(), std::sqrt(7.0 / 3.0), 1e-9);
}

TEST(SmoothnessFit, NoiseAndTheShareAbove) {
    const SmoothnessFit fit = fit_smoothness(curve(7.0, -2.0, 3.0, 2.0, 1.0), {});
    EXPECT_NEAR(fit.K_rho, 3.0, 0.2);
    EXPECT_GT(fit.r2, 0.99);
    EXPECT_LT(fit.r2, 1.0);
    EXPECT_NEAR(fit.share_above, 0.5, 0.1);
}

TEST(SmoothnessFit, SearchedExponent) {
    SmoothnessFitOptions options;
    options.rho = std::nullopt;
    const double grid_value = 1.05 + 48.95 * 7 / 99;  // one of those that are tried
    const SmoothnessFit fit = fit_smoothness(curve(4.0, 1.0, 0.5, grid_value, 0.0), options);
    EXPECT_NEAR(fit.rho, grid_value, 1e-12);
    EXPECT_NEAR(fit.K_rho, 0.5, 1e-9);
    EXPECT_NEAR(*fit.delta_star(), std::pow(4.0 / (0.5 * (grid_value - 1.0)), 1.0 / grid_value), 1e-9);
}

TEST(SmoothnessFit, WindowAndTarget) {
    std::vector<SmoothnessPoint> points = curve(7.0, -2.0, 3.0, 2.0, 0.0);
    for (SmoothnessPoint& p : points) {
        if (p.step >= 200) p.ratio = 30.0;  // another regime
    }
    points.push_back({50, -0.5, 12.0});  // below the target: the model says nothing
    SmoothnessFitOptions options;
    options.last_step = 199;
    const SmoothnessFit fit = fit_smoothness(points, options);
    EXPECT_NEAR(fit.K0, 7.0, 1e-8);
    options.first_step = 198;
    EXPECT_THROW(fit_smoothness(points, options), Error);
}

TEST(SmoothnessFit, WhatDeterminesNothing) {
    EXPECT_THROW(fit_smoothness({}, {}), Error);
    EXPECT_THROW(fit_smoothness(std::vector<SmoothnessPoint>(50, {0, 2.0, 3.0}), {}), Error);
    EXPECT_FALSE(fit_smoothness(curve(-7.0, 2.0, 3.0, 2.0, 0.0), {}).delta_star());
}

}  // namespace
}  // namespace lmo
