// Loss spikes: what counts as one, which tensor is named, and that a resumed run sees the same.
#include "llmc/train/spike.h"

#include "llmc/core/random.h"
#include "tests/unit/poisoned_run.h"

namespace lmo {
namespace {

double noise(int64_t i) { return random_normal(3, 0, static_cast<uint64_t>(i)); }

TEST(Spike, NoiseAndAFallingLossAreNone) {
    SpikeDetector detector(6.0, 1);
    for (int64_t i = 0; i < 20000; ++i) {
        const double trend = 3.0 + 7.0 * std::exp(-static_cast<double>(i) / 300.0);
        EXPECT_FALSE(detector.observe(trend + 0.05 * noise(i), {1.0})) << i;
    }
}

TEST(Spike, IsToldOnceWithTheGradientThatGrewMost) {
    SpikeDetector detector(6.0, 3);
    for (int64_t i = 0; i < 200; ++i) detector.observe(3.0 + 0.05 * noise(i), {1.0, 10.0, 0.0});
    EXPECT_FALSE(detector.observe(3.2, {9.0, 9.0, 0.0}));  // four deviations
    const auto spike = detector.observe(3.6, {4.0, 30.0, 5.0});
    ASSERT_TRUE(spike);
    EXPECT_NEAR(spike->expected, 3.0, 0.03);
    EXPECT_EQ(spike->tensor, 0);
    EXPECT_NEAR(spike->ratio, 4.0 / (1.0 + 8.0 / 32), 1e-6);
    for (int i = 0; i < 5; ++i) EXPECT_FALSE(detector.observe(4.0, {4.0, 30.0, 0.0}));
    EXPECT_FALSE(detector.observe(3.0, {1.0, 10.0, 0.0}));
    EXPECT_TRUE(detector.observe(4.0, {1.0, 40.0, 0.0}));  // after it was back
}

// The median and the deviation are not moved by what they are there to find.
TEST(Spike, OutliersDoNotHideOneAnother) {
    SpikeDetector detector(6.0, 1);
    int told = 0;
    for (int64_t i = 0; i < 300; ++i) {
        const bool outlier = i % 5 == 0 && i >= 64;
        told += detector.observe((outlier ? 5.0 : 3.0) + 0.05 * noise(i), {1.0}).has_value();
    }
    EXPECT_EQ(told, 47);  // 65, 70, ..., 295
}

// A loss that stays up is the new normal after half a window.
TEST(Spike, AStepIsOneSpike) {
    SpikeDetector detector(6.0, 1);
    int told = 0;
    for (int64_t i = 0; i < 400; ++i) {
        told += detector.observe((i < 200 ? 3.0 : 4.0) + 0.05 * noise(i), {1.0}).has_value();
    }
    EXPECT_EQ(told, 1);
    EXPECT_FALSE(detector.observe(4.0, {1.0}));
    EXPECT_TRUE(detector.observe(5.0, {1.0}));
}

TEST(Spike, NeedsSomePastAndADifferenceThatMatters) {
    SpikeDetector detector(6.0, 1);
    for (int i = 0; i < 15; ++i) EXPECT_FALSE(detector.observe(3.0, {0.0}));
    EXPECT_FALSE(detector.observe(30.0, {0.0}));  // the 16th loss has 15 before it
    EXPECT_FALSE(detector.observe(3.08, {1.0}));  // below 6 x 0.5 % of 3
    const auto spike = detector.observe(3.1, {1.0});
    ASSERT_TRUE(spike);
    EXPECT_EQ(spike->tensor, 0);
    EXPECT_EQ(spike->ratio, 32.0);
    SpikeDetector zeros(6.0, 1);
    for (int i = 0; i < 20; ++i) zeros.observe(3.0, {0.0});
    EXPECT_EQ(zeros.observe(9.0, {1.0})->tensor, -1);
}

TEST(Spike, ZeroSwitchesItOff) {
    SpikeDetector detector(0.0, 1);
    for (int i = 0; i < 100; ++i) EXPECT_FALSE(detector.observe(i < 90 ? 3.0 : 300.0, {1.0}));
    EXPECT_TRUE(detector.state().is_null());
}

TEST(Spike, StateGoesThroughTextUnchanged) {
    SpikeDetector one(6.0, 2), other(6.0, 2);
    for (int64_t i = 0; i < 100; ++i) {
        const bool high = i > 70 && i % 9 < 2;
        const double loss = 3.0 + high + 0.05 * noise(i);
        const std::vector<double> norms = {std::abs(noise(i + 1000)), std::abs(noise(i + 2000))};
        other.restore(ordered_json::parse(one.state().dump()));
        const auto a = one.observe(loss, norms), b = other.observe(loss, norms);
        ASSERT_EQ(a.has_value(), b.has_value()) << i;
        EXPECT_EQ(a.has_value(), i > 70 && i % 9 == 0) << i;
        if (a) {
            EXPECT_EQ(a->expected, b->expected);
            EXPECT_EQ(a->tensor, b->tensor);
            EXPECT_EQ(a->ratio, b->ratio);
        }
        EXPECT_EQ(one.state(), other.state());
    }
    EXPECT_THROW(SpikeDetector(6.0, 3).restore(ordered_json::parse(one.state().dump())), Error);
}

class SpikeInRun : public PoisonedRun {};

TEST_F(SpikeInRun, IsLoggedWithStepAndTensorAndSurvivesAResume) {
    settings_["run"]["steps"] = 30;
    settings_["checkpoint"]["every"] = 12;
    const std::string down = "model.layers.0.mlp.down_proj.weight";
    const int index = llama_parameters(config("x").model).find(down);
    for (const int64_t update : {20, 27}) {
        backend_.poisons.push_back(poison(update, Poison::Where::loss, 40.0));
        backend_.poisons.push_back(poison(update, Poison::Where::gradient, 50.0, index));
    }
    EXPECT_EQ(train("whole"), "");
    EXPECT_NE(err_.find("update 20: loss "), std::string::npos) << err_;
    EXPECT_NE(err_.find("is a spike"), std::string::npos);
    EXPECT_NE(err_.find(down), std::string::npos);
    const auto lines = metrics("whole", "spike");
    ASSERT_EQ(lines.size(), 2u);
    std::vector<std::string> keys;
    for (const auto& item : lines[0].items()) keys.push_back(item.key());
    EXPECT_EQ(keys,
              (std::vector<std::string>{"type", "step", "loss", "expected", "tensor", "ratio"}));
    EXPECT_EQ(lines[0]["step"], 20);
    EXPECT_GT(lines[0]["loss"].get<double>(), 40.0 - 1e-9);
    EXPECT_LT(lines[0]["expected"].get<double>(), 4.0);
    EXPECT_EQ(lines[0]["tensor"], down);
    EXPECT_GT(lines[0]["ratio"].get<double>(), 10.0);
    EXPECT_EQ(lines[1]["step"], 27);
    for (const int64_t step : {0, 12, 24}) {
        const std::string part = "part" + std::to_string(step);
        copy_until("whole", part, step);
        EXPECT_EQ(train(part), "");
        expect_same_run("whole", part);
    }
    // The detector only looks.
    settings_["log"]["spike"] = 0;
    EXPECT_EQ(train("off"), "");
    EXPECT_EQ(saved("off"), saved("whole"));
    EXPECT_TRUE(metrics("off", "spike").empty());
}

}  // namespace
}  // namespace lmo
