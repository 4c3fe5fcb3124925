// The adaptive warm-up as a state machine: the switch, the decays after it, resume, messages and
// errors. Pinned numbers: dev/reference/schedule.py.
#include "llmc/schedule/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "llmc/core/error.h"

namespace lmo {
namespace {

constexpr double kMuon124M = 46848;  // kappa

void expect_relative(double value, double expected, double tolerance) {
    EXPECT_NEAR(value, expected, tolerance * std::abs(expected));
}

ScheduleConfig adaptive_config(int64_t steps = 100) {
    ScheduleConfig config;
    config.lr = 1e-3;
    config.steps = steps;
    config.warmup.type = WarmupType::adaptive;
    config.warmup.target_loss = 3.2;
    config.warmup.delta_star_mode = DeltaStarMode::given;
    config.warmup.delta_star = 2.5;
    config.decay.type = LrDecayType::cosine;
    return config;
}
// A noisy loss that falls from 10.95 to about 4.2 and reaches gap 2.5 before the middle of the run.
double synthetic_loss(int64_t step, int64_t steps) {
    const double x = static_cast<double>(step) / static_cast<double>(steps);
    return 4.2 + 6.75 * std::exp(-6.0 * x) + 0.05 * std::sin(7.0 * static_cast<double>(step));
}
template <class F>
std::string error_of(F f) {
    try {
        f();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}
bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

TEST(ScheduleAdaptive, FollowsTheGapWithoutLagThenDecaysFromTheSwitch) {
    ScheduleConfig config = adaptive_config(20);
    config.warmup.delta_star_mode = DeltaStarMode::exact;
    Schedule schedule(config, kMuon124M);
    EXPECT_FALSE(schedule.curve().has_value());
    const std::vector<double> losses = {10.95, 10.9, 10.5, 10, 9, 8, 7, 6, 5.6};
    const double expected[] = {1e-5,          1.01257595e-5, 1.12494618e-5, 1.30269207e-5,
                               1.87264888e-5, 3.1397377e-5,  7.38324402e-5, 5.10172583e-4};
    for (int64_t s = 0; s < 8; s++) {
        const RateStep step = schedule.next(s, losses[s]);
        expect_relative(step.rate, expected[s], 1e-8);
        EXPECT_EQ(step.phase, Phase::warmup);
        EXPECT_DOUBLE_EQ(step.delta.value(), losses[s] - 3.2);
        EXPECT_EQ(schedule.message(), "");
    }
    EXPECT_NEAR(schedule.curve().value().delta_star, 2.48855711, 5e-9);
    EXPECT_NEAR(schedule.curve().value().K1, -136944.63, 5e-3);

    const RateStep peak = schedule.next(8, losses[8]);
    EXPECT_EQ(peak.rate, 1e-3);
    EXPECT_EQ(peak.phase, Phase::decay);
    EXPECT_EQ(schedule.state().switched_at, 8);
    EXPECT_EQ(schedule.state().peak, 1e-3);
    EXPECT_EQ(schedule.message(),
              "update 8: loss gap 2.4000 reached delta_star 2.4886, warm-up ends (40.0% of the "
              "run), cosine decay over the remaining 12 updates");
    for (int64_t s = 9; s < 20; s++) {
        const RateStep step = schedule.next(s, 10.0);  // whatever the loss: the switch is for good
        const double part = (s - 8) / 11.0;
        EXPECT_NEAR(step.rate, 1e-7 + (1e-3 - 1e-7) * (1 + std::cos(std::acos(-1.0) * part)) / 2,
                    1e-17);
        EXPECT_EQ(step.phase, Phase::decay);
        EXPECT_DOUBLE_EQ(step.delta.value(), 6.8);
        EXPECT_EQ(schedule.message(), "");
    }
    EXPECT_EQ(schedule.state().switched_at, 8);
}

TEST(ScheduleAdaptive, ShapeDoesNotDependOnLr) {
    ScheduleConfig config = adaptive_config();
    config.warmup.delta_star_mode = DeltaStarMode::exact;
    Schedule one(config, kMuon124M);
    config.lr *= 64;  // a power of two: equality is exact
    Schedule scaled(config, kMuon124M);
    for (int64_t s = 0; s < 100; s++) {
        const double loss = synthetic_loss(s, 100);
        EXPECT_EQ(64 * one.next(s, loss).rate, scaled.next(s, loss).rate);
    }
    EXPECT_GT(one.state().switched_at, 10);
    EXPECT_EQ(one.state().delta_star, scaled.state().delta_star);
}

TEST(ScheduleAdaptive, ResumeIsBitwise) {
    const std::pair<LrDecayType, DeltaStarMode> cases[] = {
        {LrDecayType::cosine, DeltaStarMode::exact},
        {LrDecayType::cosine, DeltaStarMode::unweighted},
        {LrDecayType::wsd, DeltaStarMode::exact},
        {LrDecayType::gap, DeltaStarMode::exact},
    };
    for (const auto& [type, mode] : cases) {
        ScheduleConfig config = adaptive_config();
        config.decay.type = type;
        config.warmup.delta_star_mode = mode;
        config.warmup.loss_ema = 0.9;
        Schedule whole(config, kMuon124M);
        std::vector<double> rates;
        std::vector<ScheduleState> states;
        for (int64_t s = 0; s < 100; s++) {
            rates.push_back(whole.next(s, synthetic_loss(s, 100)).rate);
            states.push_back(whole.state());
        }
        const int64_t switched_at = whole.state().switched_at;
        ASSERT_GT(switched_at, 12);
        ASSERT_LT(switched_at, 48);  // by the gap, not by max_fraction
        for (const int64_t done : {int64_t{10}, switched_at, switched_at + 1, int64_t{80}}) {
            Schedule resumed(config, kMuon124M);
            resumed.restore(states[done - 1]);
            for (int64_t s = done; s < 100; s++) {
                EXPECT_EQ(resumed.next(s, synthetic_loss(s, 100)).rate, rates[s]);
            }
        }
    }
}

TEST(ScheduleAdaptive, SmoothsTheLoss) {
    ScheduleConfig config = adaptive_config();
    config.warmup.loss_ema = 0.75;
    Schedule schedule(config, 1.0);
    EXPECT_EQ(schedule.next(0, 10.95).rate, warmup_rate(10.95 - 3.2, 1e-3, 100, 10.95 - 3.2, 2.5));
    const RateStep step = schedule.next(1, 4.0);  // one low loss does not end the warm-up
    EXPECT_EQ(step.phase, Phase::warmup);
    EXPECT_DOUBLE_EQ(step.delta.value(), 0.75 * 10.95 + 0.25 * 4.0 - 3.2);
}

TEST(ScheduleAdaptive, WarmupThatTakesTooLongDecaysFromItsCurrentRate) {
    ScheduleConfig config = adaptive_config();
    config.warmup.max_fraction = 0.07;  // 0.07 * 100 is above 7 in doubles; update 7 is meant
    Schedule schedule(config, 1.0);
    schedule.next(0, 10.95);
    for (int64_t s = 1; s < 7; s++) EXPECT_EQ(schedule.next(s, 8.0).phase, Phase::warmup);
    const double rate = warmup_rate(8.0 - 3.2, 1e-3, 100, 10.95 - 3.2, 2.5);
    const RateStep step = schedule.next(7, 8.0);
    EXPECT_EQ(step.rate, rate);
    EXPECT_EQ(step.phase, Phase::decay);
    EXPECT_EQ(schedule.state().switched_at, 7);
    EXPECT_EQ(schedule.state().peak, rate);
    const std::string message = schedule.message();
    for (const char* part :
         {"update 7: ", "gap 4.8000 has not come down to delta_star 2.5000",
          "after 7.0% of the run", "current rate 3.157e-05",
          "cosine decay over the remaining 93 updates", "target_loss", "max_fraction"}) {
        EXPECT_TRUE(contains(message, part)) << part << " in " << message;
    }
    double previous = rate;
    for (int64_t s = 8; s < 100; s++) {
        const double next = schedule.next(s, 4.0).rate;  // below delta_star: no second switch
        EXPECT_LT(next, previous);
        EXPECT_EQ(schedule.message(), "");
        previous = next;
    }
    EXPECT_EQ(previous, 1e-3 / 1e4);
}

TEST(ScheduleAdaptive, FloorIsNeverAboveThePeakOfAForcedSwitch) {
    ScheduleConfig config = adaptive_config(10);
    config.warmup.max_fraction = 0.0;
    config.decay.final_div = 10;  // lr/10 is above the first rate lr/100
    Schedule schedule(config, 1.0);
    const double first = schedule.next(0, 10.95).rate;
    expect_relative(first, 1e-5, 1e-12);
    for (int64_t s = 1; s < 10; s++) EXPECT_EQ(schedule.next(s, 9.0).rate, first);
}

TEST(ScheduleAdaptive, GapDecayKeepsFollowingTheGap) {
    ScheduleConfig config = adaptive_config(10);
    config.decay.type = LrDecayType::gap;
    config.decay.final_div = 50;
    Schedule schedule(config, 1.0);
    const double delta0 = 10.95 - 3.2;
    const double losses[] = {10.95, 6.0, 5.5, 5.0, 6.0, 4.0, 3.2, 3.0, 5.7, 11.5};
    for (int64_t s = 0; s < 10; s++) {
        SCOPED_TRACE(s);
        const RateStep step = schedule.next(s, losses[s]);
        const double rate = warmup_rate(losses[s] - 3.2, 1e-3, 100, delta0, 2.5);
        EXPECT_EQ(step.phase, s < 2 ? Phase::warmup : Phase::decay);
        EXPECT_EQ(step.rate, s < 2 ? rate : std::max(rate, 1e-3 / 50));
        EXPECT_EQ(schedule.message().empty(), s != 2);
    }
    EXPECT_EQ(schedule.state().switched_at, 2);
}

TEST(ScheduleAdaptive, PhasesOfTheOtherDecays) {
    ScheduleConfig config = adaptive_config(10);
    config.decay.type = LrDecayType::constant;
    Schedule constant(config, 1.0);
    constant.next(0, 10.95);
    EXPECT_EQ(constant.next(1, 5.0).phase, Phase::constant);
    EXPECT_TRUE(contains(constant.message(), "constant rate over the remaining 9 updates"));
    EXPECT_EQ(constant.next(9, 5.0).rate, 1e-3);

    config.decay.type = LrDecayType::wsd;
    Schedule wsd(config, 1.0);
    wsd.next(0, 10.95);
    EXPECT_EQ(wsd.next(1, 5.0).phase, Phase::constant);
    EXPECT_TRUE(contains(wsd.message(), "then decay in the last 2 updates of the run"));
    EXPECT_EQ(wsd.next(7, 5.0).phase, Phase::constant);
    EXPECT_NEAR(wsd.next(8, 5.0).rate, 0.5 * (1e-3 + 1e-7), 1e-18);
    EXPECT_EQ(wsd.next(9, 5.0).rate, 1e-7);
}

TEST(ScheduleAdaptive, SwitchAtTheLastUpdate) {
    ScheduleConfig config = adaptive_config(2);
    config.warmup.max_fraction = 1.0;
    Schedule schedule(config, 1.0);
    schedule.next(0, 10.95);
    EXPECT_EQ(schedule.next(1, 5.0).rate, 1e-3);
    EXPECT_TRUE(contains(schedule.message(), "over the remaining 1 update"));

    config.steps = 1;
    Schedule one(config, 1.0);
    expect_relative(one.next(0, 10.95).rate, 1e-5, 1e-12);
}

TEST(ScheduleAdaptive, StartStandsForTheFirstLoss) {
    ScheduleConfig config = adaptive_config();
    config.warmup.delta_star_mode = DeltaStarMode::exact;
    Schedule fed(config, kMuon124M), started(config, kMuon124M);
    fed.next(0, 10.95);
    started.start(10.95);
    EXPECT_EQ(started.curve().value().K2, fed.curve().value().K2);
    EXPECT_EQ(fed.next(1, 9.0).rate, started.next(1, 9.0).rate);
}

TEST(ScheduleErrors, FirstLossMustBeAboveTheTarget) {
    for (const double loss : {3.0, 3.2, 3.219}) {
        Schedule schedule(adaptive_config(), 1.0);
        const std::string message = error_of([&] { schedule.next(0, loss); });
        for (const char* part :
             {"first loss is 3", "target_loss is 3.2", "set target_loss below"}) {
            EXPECT_TRUE(contains(message, part)) << part << " in " << message;
        }
        EXPECT_FALSE(schedule.state().started);
    }
}

TEST(ScheduleErrors, GivenPeakMustLieBelowTheFirstGap) {
    for (const double delta_star : {-1.0, 0.0, 7.75, 9.0}) {
        ScheduleConfig config = adaptive_config();
        config.warmup.delta_star = delta_star;
        Schedule schedule(config, 1.0);
        const std::string message = error_of([&] { schedule.next(0, 10.95); });
        EXPECT_TRUE(contains(message, "schedule.warmup.delta_star")) << message;
        EXPECT_TRUE(contains(message, "between 0 and the first loss gap 7.75")) << message;
    }
}

TEST(ScheduleErrors, LossMustBeFinite) {
    Schedule schedule(adaptive_config(), 1.0);
    EXPECT_THROW(schedule.next(0, std::nan("")), Error);
    EXPECT_FALSE(schedule.state().started);
    schedule.next(0, 10.95);
    EXPECT_TRUE(contains(error_of([&] { schedule.next(1, INFINITY); }), "loss of update 1"));
    EXPECT_EQ(schedule.state().smoothed_loss, 10.95);
}

TEST(ScheduleErrors, ConfigurationsThatMakeNoSchedule) {
    ScheduleConfig config = adaptive_config();
    config.decay.type = LrDecayType::gap;
    config.warmup.type = WarmupType::linear;
    EXPECT_TRUE(contains(error_of([&] { Schedule(config, 1.0); }), "schedule.decay.type \"gap\""));
    EXPECT_THROW(Schedule(config, 1.0), UsageError);
    config = adaptive_config();
    config.warmup.delta_star_mode = DeltaStarMode::exact;
    EXPECT_TRUE(contains(error_of([&] { Schedule(config, 0.0); }), "kappa"));
    config.warmup.delta_star_mode = DeltaStarMode::given;
    EXPECT_NO_THROW(Schedule(config, 0.0));
    config.warmup.delta_star_mode = DeltaStarMode::unweighted;
    EXPECT_NO_THROW(Schedule(config, 0.0));
    for (const double div : {1.4, 2e4}) {
        config.warmup.div = div;
        EXPECT_TRUE(contains(error_of([&] { Schedule(config, 1.0); }), "div between 1.5 and 1e4"));
    }
    config.warmup.div = 100;
    config.warmup.delta_star_mode = DeltaStarMode::given;
    config.warmup.loss_ema = 1.0;
    EXPECT_THROW(Schedule(config, 1.0), UsageError);
    config = adaptive_config();
    config.warmup.div = 0.5;
    EXPECT_THROW(Schedule(config, 1.0), UsageError);
    EXPECT_THROW(Schedule(adaptive_config(0), 1.0), UsageError);
}

TEST(SchedulePhase, Names) {
    EXPECT_EQ(to_string(Phase::warmup), "warmup");
    EXPECT_EQ(to_string(Phase::decay), "decay");
    EXPECT_EQ(to_string(Phase::constant), "constant");
}

}  // namespace
}  // namespace lmo
