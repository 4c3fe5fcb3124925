// Fixed warm-ups and decays. The baseline vector is that of dev/reference/schedule.py; the rest are
// hand-computed rates and properties: exact ends, monotone decays, short runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "llmc/core/error.h"
#include "llmc/schedule/schedule.h"

namespace lmo {
namespace {

void expect_relative(double value, double expected, double tolerance) {
    EXPECT_NEAR(value, expected, tolerance * std::abs(expected));
}

ScheduleConfig fixed_config(int64_t steps, WarmupType type, int64_t warmup, LrDecayType decay) {
    ScheduleConfig config;
    config.lr = 1e-3;
    config.steps = steps;
    config.warmup.type = type;
    config.warmup.steps = warmup;
    config.decay.type = decay;
    return config;
}

std::vector<RateStep> fixed_run(const ScheduleConfig& config) {
    Schedule schedule(config, 1.0);
    std::vector<RateStep> steps;
    for (int64_t s = 0; s < config.steps; s++) steps.push_back(schedule.next(s, 5.0));
    return steps;
}

TEST(ScheduleFixed, CosineWarmupAndDecayMatchTheBaselineVector) {
    ScheduleConfig config = fixed_config(20, WarmupType::cosine, 5, LrDecayType::cosine);
    config.decay.final_div = 1e6;
    const double expected[] = {1e-5,          1.54982143e-4, 5.05e-4,       8.55017857e-4,
                               1e-3,          9.89073811e-4, 9.56772772e-4, 9.04508593e-4,
                               8.34565469e-4, 7.5000025e-4,  6.54508843e-4, 5.52264679e-4,
                               4.47736321e-4, 3.45492157e-4, 2.5000075e-4,  1.65435531e-4,
                               9.54924073e-5, 4.3228228e-5,  1.09271887e-5, 1e-9};
    const std::vector<RateStep> steps = fixed_run(config);
    for (int64_t s = 0; s < 20; s++) {
        SCOPED_TRACE(s);
        expect_relative(steps[s].rate, expected[s], 1e-8);
        EXPECT_EQ(steps[s].phase, s < 5 ? Phase::warmup : Phase::decay);
        EXPECT_FALSE(steps[s].delta.has_value());
    }
    EXPECT_EQ(steps[4].rate, 1e-3);
    EXPECT_EQ(steps[19].rate, 1e-3 / 1e6);
}

// The rates of an adaptive warm-up, listed: the same run without its losses.
TEST(ScheduleFixed, ListedRatesReplayAnAdaptiveRun) {
    for (const LrDecayType decay : {LrDecayType::cosine, LrDecayType::linear, LrDecayType::wsd,
                                    LrDecayType::constant}) {
        ScheduleConfig config = fixed_config(40, WarmupType::adaptive, 0, decay);
        config.warmup.target_loss = 3.2;
        Schedule adaptive(config, 46848);
        std::vector<RateStep> expected;
        for (int64_t s = 0; s < config.steps; s++) {
            expected.push_back(adaptive.next(s, 10.95 - 0.4 * static_cast<double>(s)));
        }
        ScheduleConfig replay = fixed_config(40, WarmupType::rates, 0, decay);
        for (int64_t s = 0; s <= adaptive.state().switched_at; s++) {
            replay.warmup.rates.push_back(expected[s].rate);
        }
        ASSERT_GT(replay.warmup.rates.size(), 5u);
        const std::vector<RateStep> steps = fixed_run(replay);
        for (int64_t s = 0; s < config.steps; s++) EXPECT_EQ(steps[s].rate, expected[s].rate) << s;
    }
}

TEST(ScheduleFixed, ListedRatesNeedAtLeastOneAndAtMostOneForEachUpdate) {
    ScheduleConfig config = fixed_config(3, WarmupType::rates, 0, LrDecayType::cosine);
    EXPECT_THROW(Schedule(config, 1.0), UsageError);
    config.warmup.rates = {1e-4, 2e-4, 3e-4, 4e-4};
    EXPECT_THROW(Schedule(config, 1.0), UsageError);
    config.warmup.rates.pop_back();
    EXPECT_EQ(fixed_run(config)[2].rate, 3e-4);
}

TEST(ScheduleFixed, LinearWarmupAndDecay) {
    ScheduleConfig config = fixed_config(9, WarmupType::linear, 4, LrDecayType::linear);
    config.warmup.div = 10;
    config.decay.final_div = 100;
    const double expected[] = {1e-4, 4e-4, 7e-4, 1e-3, 8.02e-4, 6.04e-4, 4.06e-4, 2.08e-4, 1e-5};
    const std::vector<RateStep> steps = fixed_run(config);
    for (int64_t s = 0; s < 9; s++) expect_relative(steps[s].rate, expected[s], 1e-13);
}

TEST(ScheduleFixed, ConstantStaysAtLr) {
    for (const RateStep& step :
         fixed_run(fixed_config(5, WarmupType::none, 0, LrDecayType::constant))) {
        EXPECT_EQ(step.rate, 1e-3);
        EXPECT_EQ(step.phase, Phase::constant);
    }
}

TEST(ScheduleFixed, WsdShapes) {
    ScheduleConfig config = fixed_config(10, WarmupType::linear, 2, LrDecayType::wsd);
    config.lr = 1.0;
    config.decay.final_div = 1e6;
    config.decay.fraction = 0.4;
    const double x[] = {0.25, 0.5, 0.75, 1.0};
    const double floor = 1e-6;
    for (const WsdShape shape : {WsdShape::linear, WsdShape::cosine, WsdShape::sqrt}) {
        config.decay.shape = shape;
        const std::vector<RateStep> steps = fixed_run(config);
        for (int64_t s = 2; s < 6; s++) {
            EXPECT_EQ(steps[s].rate, 1.0);
            EXPECT_EQ(steps[s].phase, Phase::constant);
        }
        for (int64_t s = 6; s < 10; s++) {
            double left = 1.0 - x[s - 6];
            if (shape == WsdShape::sqrt) left = 1.0 - std::sqrt(x[s - 6]);
            if (shape == WsdShape::cosine) left = (1.0 + std::cos(std::acos(-1.0) * x[s - 6])) / 2;
            EXPECT_NEAR(steps[s].rate, floor + (1.0 - floor) * left, 1e-15);
            EXPECT_EQ(steps[s].phase, Phase::decay);
        }
        EXPECT_EQ(steps[9].rate, floor);
    }
}

TEST(ScheduleFixed, WsdDecayNeverOverlapsTheWarmup) {
    ScheduleConfig config = fixed_config(10, WarmupType::linear, 8, LrDecayType::wsd);
    config.decay.fraction = 0.9;  // would start at update 1
    const std::vector<RateStep> steps = fixed_run(config);
    EXPECT_EQ(steps[7].rate, 1e-3);
    EXPECT_EQ(steps[7].phase, Phase::warmup);
    EXPECT_NEAR(steps[8].rate, 0.5 * (1e-3 + 1e-7), 1e-18);
    EXPECT_EQ(steps[9].rate, 1e-7);
    config.decay.fraction = 0.0;  // no decay at all
    config.warmup.steps = 2;
    EXPECT_EQ(fixed_run(config)[9].rate, 1e-3);
}

TEST(ScheduleFixed, DecaysAreMonotoneAndEndAtTheFloorExactly) {
    for (const LrDecayType type : {LrDecayType::cosine, LrDecayType::linear, LrDecayType::wsd}) {
        for (const int64_t warmup : {0, 1, 7}) {
            ScheduleConfig config = fixed_config(101, WarmupType::cosine, warmup, type);
            config.lr = 0.3;
            const std::vector<RateStep> steps = fixed_run(config);
            const int64_t anchor = std::max<int64_t>(warmup - 1, 0);
            for (int64_t s = 1; s <= anchor; s++) EXPECT_GT(steps[s].rate, steps[s - 1].rate);
            EXPECT_EQ(steps[anchor].rate, 0.3);
            for (int64_t s = anchor + 1; s < 101; s++) {
                const bool stable = steps[s].phase == Phase::constant;
                EXPECT_EQ(stable, type == LrDecayType::wsd && s < 101 - 20);
                if (stable) {
                    EXPECT_EQ(steps[s].rate, 0.3);
                } else {
                    EXPECT_LT(steps[s].rate, steps[s - 1].rate);
                }
            }
            EXPECT_EQ(steps[100].rate, 0.3 / 1e4);
        }
    }
}

TEST(ScheduleFixed, ShortRunsAndLongWarmups) {
    for (const LrDecayType type :
         {LrDecayType::cosine, LrDecayType::linear, LrDecayType::wsd, LrDecayType::constant}) {
        for (const WarmupType warmup : {WarmupType::linear, WarmupType::cosine}) {
            EXPECT_EQ(fixed_run(fixed_config(1, WarmupType::none, 0, type))[0].rate, 1e-3);
            EXPECT_EQ(fixed_run(fixed_config(1, warmup, 1, type))[0].rate, 1e-3);
            const std::vector<RateStep> two = fixed_run(fixed_config(2, warmup, 1, type));
            EXPECT_EQ(two[0].rate, 1e-3);
            EXPECT_EQ(two[0].phase, Phase::warmup);
            // round(0.2 * 2) = 0 updates of wsd decay
            const bool decays = type == LrDecayType::cosine || type == LrDecayType::linear;
            EXPECT_EQ(two[1].rate, decays ? 1e-7 : 1e-3);
            // the warm-up fills the run, or is cut off by its end
            const std::vector<RateStep> full = fixed_run(fixed_config(2, warmup, 2, type));
            EXPECT_EQ(full[0].rate, 1e-3 / 100);
            EXPECT_EQ(full[1].rate, 1e-3);
            const std::vector<RateStep> cut = fixed_run(fixed_config(2, warmup, 3, type));
            EXPECT_NEAR(cut[1].rate, 0.5 * (1e-3 + 1e-5), 1e-18);
            EXPECT_EQ(cut[1].phase, Phase::warmup);
        }
    }
}

TEST(ScheduleFixed, WarmupOfZeroUpdatesIsNone) {
    const auto with = fixed_run(fixed_config(10, WarmupType::linear, 0, LrDecayType::cosine));
    const auto none = fixed_run(fixed_config(10, WarmupType::none, 5, LrDecayType::cosine));
    for (int64_t s = 0; s < 10; s++) {
        EXPECT_EQ(with[s].rate, none[s].rate);
        EXPECT_EQ(with[s].phase, Phase::decay);
    }
}

TEST(ScheduleFixed, IgnoresTheLossAndKeepsNoState) {
    Schedule schedule(fixed_config(10, WarmupType::linear, 3, LrDecayType::cosine), 0.0);
    EXPECT_EQ(schedule.next(5, std::nan("")).rate, schedule.next(5, 4.0).rate);
    schedule.start(1.0);
    EXPECT_FALSE(schedule.state().started);
    EXPECT_FALSE(schedule.curve().has_value());
    EXPECT_EQ(schedule.message(), "");
}

}  // namespace
}  // namespace lmo
