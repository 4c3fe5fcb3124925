// Norms and Newton-Schulz sets against published scalar values, against the singular value
// decomposition (dev/reference/optimizers.py), and against their definitions.
#include <gtest/gtest.h>

#include <cmath>

#include "llmc/core/error.h"
#include "llmc/io/safetensors.h"
#include "llmc/norm/newton_schulz.h"

namespace lmo {
namespace {

NormConfig spectral(const std::string& set, int steps) {
    return {NormType::spectral, newton_schulz_set(set, steps)};
}

struct HostTensor {
    Shape shape;
    std::vector<double> values;
};

class NormTest : public testing::Test {
  protected:
    // The directions of `inputs`, computed in one call in type T.
    template <typename T>
    std::vector<std::vector<double>> directions(const NormConfig& config,
                                                const std::vector<HostTensor>& inputs) {
        std::vector<std::vector<T>> host;
        std::vector<Tensor> x;
        for (const HostTensor& input : inputs) {
            host.emplace_back(input.values.begin(), input.values.end());
            const DType type = sizeof(T) == 8 ? DType::f64 : DType::f32;
            x.push_back({backend_->allocate(host.back().size() * sizeof(T)), type, input.shape});
            backend_->copy_in(x.back(), host.back().data());
        }
        const std::unique_ptr<Norm> norm = make_norm(config);
        const int64_t bytes = static_cast<int64_t>(norm->workspace_bytes(*backend_, x));
        const Tensor workspace{backend_->allocate(bytes + 4), DType::f32, {bytes / 4 + 1}};
        norm->direction(*backend_, x, workspace);
        std::vector<std::vector<double>> result;
        for (size_t i = 0; i < x.size(); ++i) {
            backend_->copy_out(host[i].data(), x[i]);
            backend_->release(x[i].data);
            result.emplace_back(host[i].begin(), host[i].end());
        }
        backend_->release(workspace.data);
        return result;
    }

    std::unique_ptr<Backend> backend_ = make_cpu_backend(1);
};

// The composite maps at s / norm_scale for s = 1e-4, 1e-3, 0.01, 0.1, 0.5, 1, to four digits.
struct ScalarRow {
    std::string set;
    int steps;
    std::array<double, 6> image;
};
const std::array<double, 6> kSingularValues = {1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0};
const std::vector<ScalarRow> kScalarRows = {
    {"jordan", 5, {0.0485, 0.4705, 0.6989, 0.7121, 0.7654, 0.6964}},
    {"you", 5, {0.0493, 0.4750, 1.0180, 1.0190, 0.9859, 0.9783}},
    {"polar-express", 5, {0.0965, 0.8401, 1.0540, 0.8914, 1.1047, 0.8771}},
    {"polar-express", 8, {0.5701, 1.0000, 1.0000, 1.0000, 1.0000, 1.0000}},
    {"cans", 5, {0.1047, 0.8865, 1.1132, 0.9163, 1.0964, 1.0051}},
    {"cubic", 5, {0.0119, 0.1191, 1.0216, 0.8020, 1.0971, 0.7741}},
};
constexpr double kFourDigits = 0.51e-4;

TEST(NewtonSchulzSets, PublishedScalarValues) {
    for (const ScalarRow& row : kScalarRows) {
        const NewtonSchulzSet set = newton_schulz_set(row.set, row.steps);
        ASSERT_EQ(static_cast<int>(set.steps.size()), row.steps);
        for (size_t i = 0; i < row.image.size(); ++i) {
            double s = kSingularValues[i] / set.norm_scale;
            for (const auto& [a, b, c] : set.steps) {
                s = a * s + b * std::pow(s, 3) + c * std::pow(s, 5);
            }
            EXPECT_NEAR(s, row.image[i], kFourDigits) << row.set << row.steps << " column " << i;
        }
    }
}

// A diagonal matrix carries the singular values through the real operation. It is large, because
// eps beside the norm would show: the map of cans has a slope of 5e4 at 1.
TEST_F(NormTest, PublishedScalarValuesOfDiagonals) {
    constexpr double kNorm = 1e6;
    HostTensor small{{6, 6}, std::vector<double>(36)}, one{{6, 6}, std::vector<double>(36)};
    double rest = 1.0;
    for (int i = 0; i < 5; ++i) {
        small.values[i * 7] = kNorm * kSingularValues[i];
        rest -= kSingularValues[i] * kSingularValues[i];
    }
    small.values[35] = kNorm * std::sqrt(rest);
    one.values[0] = kNorm;
    for (const ScalarRow& row : kScalarRows) {
        const auto result = directions<double>(spectral(row.set, row.steps), {small, one});
        for (int i = 0; i < 5; ++i) EXPECT_NEAR(result[0][i * 7], row.image[i], kFourDigits);
        EXPECT_NEAR(result[1][0], row.image[5], kFourDigits);
        for (int i = 1; i < 36; ++i) EXPECT_EQ(result[1][i], 0.0);
    }
}

TEST(NewtonSchulzSets, LastEntryRepeats) {
    for (const std::string& name : newton_schulz_set_names()) {
        const NewtonSchulzSet set = newton_schulz_set(name, 12);
        ASSERT_EQ(set.steps.size(), 12u);
        EXPECT_EQ(set.steps[11].a, set.steps[8].a) << name;
        EXPECT_EQ(set.eps, 1e-7);
        EXPECT_EQ(set.norm_scale, name == "polar-express" ? 1.01 : 1.0);
    }
    // The exact cubic-convergent end of polar-express is not stretched.
    EXPECT_EQ(newton_schulz_set("polar-express", 8).steps[7].a, 1.875);
    EXPECT_LT(newton_schulz_set("polar-express", 8).steps[6].a, 1.86);
}

// The worst condition of Q for one restart before steps 1 to 4, by the published tuner,
// and the restarts that follow from it.
TEST(NewtonSchulzSets, RestartsOfTheGramForm) {
    const auto expect_conditions = [](const std::vector<NewtonSchulzStep>& steps,
                                      const std::array<double, 4>& published) {
        for (int restart = 1; restart <= 4; ++restart) {
            const double expected = published[static_cast<size_t>(restart - 1)];
            EXPECT_NEAR(gram_condition(steps, {restart}), expected, 0.01 * expected) << restart;
        }
    };
    const NewtonSchulzSet you = newton_schulz_set("you", 5),
                          jordan = newton_schulz_set("jordan", 5);
    expect_conditions(you.steps, {401, 53, 171, 2437});
    expect_conditions(jordan.steps, {667, 74, 63, 455});
    EXPECT_EQ(you.restarts, std::vector<int>{2});
    EXPECT_EQ(jordan.restarts, std::vector<int>{3});
    EXPECT_EQ(newton_schulz_set("polar-express", 5).restarts, (std::vector<int>{1, 2}));
    EXPECT_EQ(gram_restarts({{1.5, -0.5, 0.0}}), std::vector<int>{});
    EXPECT_EQ(gram_restarts({}), std::vector<int>{});
    // Too many steps to search: every second one.
    EXPECT_EQ(gram_restarts(newton_schulz_set("jordan", 40).steps).size(), 19u);
}

TEST(NewtonSchulzSets, Mistakes) {
    try {
        newton_schulz_set("jordon", 5);
        FAIL();
    } catch (const UsageError& error) {
        const std::string text = error.what();
        EXPECT_NE(text.find("\"jordon\""), std::string::npos) << text;
        for (const std::string& name : newton_schulz_set_names()) {
            EXPECT_NE(text.find(name), std::string::npos) << text;
        }
    }
    EXPECT_THROW(newton_schulz_set("jordan", 0), UsageError);
}

TEST_F(NormTest, SpectralAgainstSvd) {
    const SafetensorsFile golden("tests/data/optimizer_newton_schulz.safetensors");
    const HostTensor wide{{7, 12}, golden.read("x7x12", {7, 12})};
    const HostTensor tall{{12, 7}, golden.read("x12x7", {12, 7})};
    for (const std::string& name : newton_schulz_set_names()) {
        for (const int steps : {1, 5, 9}) {
            const std::string key = name + "." + std::to_string(steps);
            // Neighbours of one shape go as one batch; the other shape is a batch of its own.
            const std::vector<HostTensor> inputs = {wide, wide, tall};
            const std::vector<std::vector<double>> expected = {golden.read(key + ".7x12", {7, 12}),
                                                               golden.read(key + ".7x12", {7, 12}),
                                                               golden.read(key + ".12x7", {12, 7})};
            const auto exact = directions<double>(spectral(name, steps), inputs);
            const auto rounded = directions<float>(spectral(name, steps), inputs);
            for (size_t i = 0; i < inputs.size(); ++i) {
                for (size_t j = 0; j < expected[i].size(); ++j) {
                    EXPECT_NEAR(exact[i][j], expected[i][j], 1e-11) << key << " of " << i;
                    EXPECT_NEAR(rounded[i][j], expected[i][j], 1e-5) << key << " of " << i;
                }
            }
        }
    }
}

TEST_F(NormTest, ZeroStaysZero) {
    const HostTensor zero{{3, 5}, std::vector<double>(15, 0.0)};
    for (const NormConfig& config :
         {NormConfig{}, NormConfig{NormType::sign, {}}, NormConfig{NormType::frobenius, {}},
          spectral("jordan", 5), spectral("polar-express", 8)}) {
        const auto result = directions<float>(config, {zero});
        for (const double value : result[0]) EXPECT_EQ(value, 0.0);
    }
}

TEST_F(NormTest, ElementwiseDirections) {
    const HostTensor x{{2, 2}, {3.0, -4.0, 0.0, 12.0}}, y{{3}, {-1e-3, 0.0, 2.0}};
    EXPECT_EQ(directions<double>({}, {x})[0], x.values);
    const auto signs = directions<double>({NormType::sign, {}}, {x, y});
    EXPECT_EQ(signs[0], (std::vector<double>{1.0, -1.0, 0.0, 1.0}));
    EXPECT_EQ(signs[1], (std::vector<double>{-1.0, 0.0, 1.0}));
    const auto units = directions<double>({NormType::frobenius, {}}, {x, y});
    for (int i = 0; i < 4; ++i) EXPECT_NEAR(units[0][i], x.values[i] / (13.0 + 1e-8), 1e-15);
    const double length = std::sqrt(4.0 + 1e-6) + 1e-8;
    for (int i = 0; i < 3; ++i) EXPECT_NEAR(units[1][i], y.values[i] / length, 1e-15);
}

TEST(Norms, KappaIsTheLargestDualOverPrimal) {
    const Shape tall{2304, 768}, vector{768};
    EXPECT_EQ(make_norm(spectral("jordan", 5))->kappa(tall), 768.0);
    EXPECT_EQ(make_norm({NormType::sign, {}})->kappa(tall), 2304.0 * 768.0);
    EXPECT_EQ(make_norm({NormType::sign, {}})->kappa(vector), 768.0);
    EXPECT_EQ(make_norm({NormType::frobenius, {}})->kappa(tall), 1.0);
    EXPECT_EQ(make_norm({})->kappa(tall), 2304.0 * 768.0);  // Adam counts as sign
}

TEST(Norms, CostOfNewtonSchulz) {
    // (20 l/k + 10) k^3 for five steps: 13.6 GFLOP for 768 x 768, 31.7 for 2304 x 768.
    const auto jordan = make_norm(spectral("jordan", 5));
    EXPECT_NEAR(jordan->flops({768, 768}), 13.6e9, 0.05e9);
    EXPECT_NEAR(jordan->flops({2304, 768}), 31.7e9, 0.05e9);
    EXPECT_EQ(jordan->flops({2304, 768}), jordan->flops({768, 2304}));
    // A cubic step has no product of squares.
    EXPECT_EQ(make_norm(spectral("cubic", 1))->flops({10, 20}), 4.0 * 100 * 20);
}

TEST(Norms, OperationsThatTheProcessorExecutes) {
    const auto cpu = make_cpu_backend(1);
    const auto jordan = make_norm(spectral("jordan", 5));
    // Six blocks of 128 rows: 21 of 36 parts of both symmetric products, and the full product.
    const double cube = 768.0 * 768.0 * 768.0;
    EXPECT_DOUBLE_EQ(jordan->executed_flops(*cpu, {768, 768}), 10 * cube * (7.0 / 6 + 1));
    EXPECT_EQ(jordan->executed_flops(*cpu, {2304, 768}), jordan->executed_flops(*cpu, {768, 2304}));
    // One block: nothing is saved. A cubic step has no product of squares here either.
    EXPECT_EQ(jordan->executed_flops(*cpu, {20, 10}), jordan->flops({20, 10}));
    EXPECT_EQ(make_norm(spectral("cubic", 1))->executed_flops(*cpu, {10, 20}), 4.0 * 100 * 20);
    const auto sign = make_norm({NormType::sign, {}});
    EXPECT_EQ(sign->executed_flops(*cpu, {20, 10}), sign->flops({20, 10}));
}

TEST(Norms, SpectralNeedsAMatrix) {
    const auto norm = make_norm(spectral("jordan", 5));
    EXPECT_NO_THROW(norm->check("a", {3, 4}));
    try {
        norm->check("model.norm.weight", {768});
        FAIL();
    } catch (const UsageError& error) {
        const std::string text = error.what();
        for (const char* part : {"model.norm.weight", "[768]", "role matrix", "another norm"}) {
            EXPECT_NE(text.find(part), std::string::npos) << text;
        }
    }
    EXPECT_NO_THROW(make_norm({NormType::frobenius, {}})->check("model.norm.weight", {768}));
}

}  // namespace
}  // namespace lmo
