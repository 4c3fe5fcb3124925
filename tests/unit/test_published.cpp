// Published behaviours of the schedule. Pinned numbers: dev/reference/published.py (SciPy itself),
// and the vectors of the published scheduler below, which were made by running it.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "llmc/core/error.h"
#include "llmc/io/files.h"
#include "llmc/schedule/quadrature.h"
#include "llmc/schedule/schedule.h"
#include "tests/unit/published_golden.h"

namespace lmo {
namespace {

using nlohmann::json;

Integrand family(const std::string& name, double c, double s) {
    const std::map<std::string, Integrand> families = {
        {"bump", [=](double x) { return 1.0 / (s * s + (x - c) * (x - c)); }},
        {"kink", [=](double x) { return s * std::sqrt(std::abs(x - c)); }},
        {"root", [=](double x) { return s / std::sqrt(x); }},
        {"near", [=](double x) { return x != c ? s / std::sqrt(std::abs(x - c)) : 0.0; }},
        {"pole", [=](double x) { return x != c ? s / (x - c) : 0.0; }},
        {"step", [=](double x) { return x < c ? s : -1.0; }},
        {"comb",
         [=](double x) { return s * std::abs(x * c * 7.0 - std::floor(x * c * 7.0) - 0.5); }},
        {"cubic", [=](double x) { return s * (x - c) * (x - c) * (x - c); }},
        {"small", [=](double x) { return 1e-7 * s / (1e-4 + (x - c) * (x - c)); }},
    };
    return families.at(name);
}

TEST(PublishedQuadrature, IsSciPysBitByBit) {
    std::map<int, int> statuses;
    for (const json& row : golden("quadrature")) {
        SCOPED_TRACE(row.dump());
        const QuadratureResult result =
            qags(family(row[0], row[1], row[2]), 0.0, row[3], 1.49e-8, 1.49e-8, row[4]);
        EXPECT_EQ(result.value, row[5].get<double>());
        // pow(x, 1.5) is the one operation that may differ between C libraries.
        EXPECT_NEAR(result.error, row[6].get<double>(), 1e-13 * row[6].get<double>());
        EXPECT_EQ(result.evaluations, row[7].get<int>());
        EXPECT_EQ(static_cast<int>(result.status), row[8].get<int>());
        ++statuses[static_cast<int>(result.status)];
    }
    EXPECT_GT(statuses[0], 20);
    EXPECT_GT(statuses[1], 20);
    for (const int rare : {2, 3, 4, 5}) EXPECT_GT(statuses[rare], 0);
}

TEST(PublishedQuadrature, OnePanelIsExactForPolynomials) {
    const QuadratureResult result =
        gauss_kronrod_21([](double x) { return std::pow(x, 30); }, 0.0, 2.0);
    EXPECT_NEAR(result.value, std::pow(2.0, 31) / 31, 1e-6);
    EXPECT_EQ(result.evaluations, 21);
}

TEST(PublishedDeltaStar, IsSciPys) {
    for (const json& row : golden("delta_star")) {
        SCOPED_TRACE(row.dump());
        const double star =
            published_delta_star(DeltaStarMode::quadpack, row[0], row[1], row[2], row[3], 1e-3);
        EXPECT_EQ(star, row[4].get<double>());
    }
}

struct PeakRow {
    double lr, div, loss0, target, kappa;
    double delta_star;
};

// The values that the published code printed, to the digits noted.
TEST(PublishedDeltaStar, OfTheOfficialRuns) {
    const PeakRow rows[] = {
        {1e-3, 100, 10.95, 3.2, 46848, 2.48856},     {2e-3, 100, 10.95, 3.2, 46848, 2.48856},
        {1e-3, 100, 10.95, 3.2, 92928, 1.71401},     {1e-3, 100, 10.95, 3.5, 123568128, 0.38224449},
        {1e-2, 2, 10.95, 4.2, 61, 3.43569},          {1e-2, 5, 10.95, 4.3, 61, 2.21557},
        {1e-2, 2, 10.95, 4.2, 121, 3.42220},         {1e-3, 100, 11.0, 3.2, 46848, 2.50459},
        {1e-3, 100, 11.0, 3.2, 123568128, 0.384188}, {1e-3, 100, 11.0, 3.2, 61, 1.67826},
        {1e-3, 100, 10.98, 3.2, 46848, 5.51509},     {1e-3, 100, 10.85, 3.2, 46848, 4.888},
        {1e-3, 100, 10.88, 3.2, 46848, 3.188},       {1e-3, 100, 10.91, 3.2, 46848, 5.034},
        {1e-3, 100, 10.94, 3.2, 46848, 2.485},       {1e-3, 100, 10.97, 3.2, 46848, 5.508},
        {1e-3, 100, 11.03, 3.2, 46848, 2.671},       {1e-3, 100, 11.06, 3.2, 46848, 2.100},
        {1e-3, 100, 11.09, 3.2, 46848, 2.533}};
    for (const PeakRow& row : rows) {
        SCOPED_TRACE(std::to_string(row.loss0) + " kappa " + std::to_string(row.kappa));
        const double star = published_delta_star(DeltaStarMode::quadpack, row.lr, row.div,
                                                 row.loss0 - row.target, row.kappa, 1e-3);
        EXPECT_NEAR(star, row.delta_star, row.delta_star == 0.38224449 ? 5e-9 : 5e-4);
    }
}

// Losses at which the runs of the ablation of the target (Muon, 124M) switch when they begin
// at 10.95.
TEST(PublishedDeltaStar, OfTheAblation) {
    const double rows[][2] = {{0, 2.75},   {1, 3.52},   {2, 5.61}, {3, 7.01}, {3.2, 5.69},
                              {3.4, 5.82}, {3.6, 7.19}, {4, 6.07}, {5, 6.85}};
    for (const auto& [target, loss] : rows) {
        const double star =
            published_delta_star(DeltaStarMode::quadpack, 1e-3, 100, 10.95 - target, 46848, 1e-3);
        EXPECT_NEAR(target + star, loss, 0.0051) << target;
    }
}

TEST(PublishedDeltaStar, OnePanelIsEnoughForSignNorms) {
    for (const double kappa : {123568128.0, 208502784.0}) {
        for (const double target : {3.2, 3.5}) {
            for (double loss0 = 10.85; loss0 < 11.1; loss0 += 0.06) {
                const auto star = [&](DeltaStarMode mode) {
                    return published_delta_star(mode, 1e-3, 100, loss0 - target, kappa, 1e-3);
                };
                EXPECT_EQ(star(DeltaStarMode::gk21), star(DeltaStarMode::quadpack));
            }
        }
    }
    EXPECT_NEAR(published_delta_star(DeltaStarMode::gk21, 1e-3, 100, 7.75, 46848, 1e-3), 3.8827,
                1e-4);  // but not for muon's
}

ScheduleConfig official(double lr, double div, double target, int64_t steps, LrDecayType decay) {
    ScheduleConfig config;
    config.lr = lr;
    config.steps = steps;
    config.warmup.type = WarmupType::adaptive;
    config.warmup.div = div;
    config.warmup.target_loss = target;
    config.warmup.delta_star_mode = DeltaStarMode::quadpack;
    config.warmup.max_fraction = 1.0;
    config.decay.type = decay;
    config.compat.first_peak = config.compat.lag = config.compat.late_decay = true;
    return config;
}

void expect_rates(Schedule schedule, const std::vector<double>& losses,
                  const std::vector<double>& rates) {
    for (size_t i = 0; i < rates.size(); ++i) {
        SCOPED_TRACE(i);
        const double rate = schedule.next(static_cast<int64_t>(i), losses[i]).rate;
        EXPECT_NEAR(rate, rates[i], 1e-8 * rates[i]);
    }
}

TEST(PublishedSchedule, AdaptiveRuns) {
    for (const json& row : golden("adaptive")) {
        SCOPED_TRACE(row.dump());
        const std::vector<double> losses = row.at("losses");
        const auto decay = row.at("shape") == "linear" ? LrDecayType::linear : LrDecayType::cosine;
        Schedule schedule(official(row.at("lr"), row.at("div"), row.at("target"),
                                   static_cast<int64_t>(losses.size()), decay),
                          row.at("kappa"));
        expect_rates(schedule, losses, row.at("rates"));
        schedule.next(0, losses[0]);
        EXPECT_EQ(schedule.curve()->delta_star, row.at("delta_star").get<double>());
    }
}

TEST(PublishedSchedule, TheOfficialVector) {
    const std::vector<double> losses = {10.95, 10.9, 10.5, 10,  9,   8,   7,   6,   5.6, 5.5,
                                        5.4,   5.3,  5.3,  5.3, 5.3, 5.3, 5.3, 5.3, 5.3, 5.3};
    const std::vector<double> rates = {1e-3,          1e-5,          1.01257595e-5, 1.12494618e-5,
                                       1.30269207e-5, 1.87264888e-5, 3.1397377e-5,  7.38324402e-5,
                                       5.10172583e-4, 9.33019401e-4, 8.53568035e-4, 7.50025e-4,
                                       6.29446582e-4, 5.0005e-4,     3.70653418e-4, 2.50075e-4,
                                       1.46531965e-4, 6.70805994e-5, 1.71353831e-5, 1e-7};
    Schedule schedule(official(1e-3, 100, 3.2, 20, LrDecayType::cosine), 46848);
    expect_rates(schedule, losses, rates);
    Schedule again(official(1e-3, 100, 3.2, 20, LrDecayType::cosine), 46848);
    for (int64_t i = 0; i < 20; ++i) {
        const RateStep step = again.next(i, losses[static_cast<size_t>(i)]);
        EXPECT_EQ(step.phase, i < 9 ? Phase::warmup : Phase::decay);
        EXPECT_EQ(again.message().empty(), i != 9);
    }
    EXPECT_EQ(again.state().switched_at, 9);  // by the loss of update 8
}

ScheduleConfig onecycle(double lr, double div, double final_div, int64_t steps, int64_t warmup,
                        const std::string& shape) {
    ScheduleConfig config;
    config.lr = lr;
    config.steps = steps;
    const bool cosine = shape == "cosine";
    config.warmup.type = cosine ? WarmupType::cosine : WarmupType::linear;
    config.warmup.steps = warmup;
    config.warmup.div = div;
    config.decay.type = cosine ? LrDecayType::cosine : LrDecayType::linear;
    config.decay.final_div = final_div;
    config.compat.onecycle = true;
    return config;
}

TEST(PublishedSchedule, OneCycle) {
    for (const json& row : golden("onecycle")) {
        SCOPED_TRACE(row.dump());
        const std::vector<double> rates = row.at("rates");
        expect_rates(Schedule(onecycle(row.at("lr"), row.at("div"), row.at("final_div"),
                                       row.at("steps"), row.at("warmup"), row.at("shape")),
                              1.0),
                     std::vector<double>(rates.size(), 5.0), rates);
    }
}

TEST(PublishedSchedule, TheBaselineVector) {
    const std::vector<double> rates = {1e-5,          1.54982143e-4, 5.05e-4,       8.55017857e-4,
                                       1e-3,          9.89073811e-4, 9.56772772e-4, 9.04508593e-4,
                                       8.34565469e-4, 7.5000025e-4,  6.54508843e-4, 5.52264679e-4,
                                       4.47736321e-4, 3.45492157e-4, 2.5000075e-4,  1.65435531e-4,
                                       9.54924073e-5, 4.3228228e-5,  1.09271887e-5, 1e-9};
    expect_rates(Schedule(onecycle(1e-3, 100, 1e4, 20, 5, "cosine"), 1.0),
                 std::vector<double>(20, 5.0), rates);
}

// Each switch alone changes what it says and nothing else.
TEST(PublishedSchedule, SwitchesAreIndependent) {
    ScheduleConfig plain = official(1e-3, 100, 3.2, 12, LrDecayType::cosine);
    plain.compat = {};
    const std::vector<double> losses = {10.95, 9, 8, 7, 6, 5.6, 5.5, 5.4, 5.4, 5.4, 5.4, 5.4};
    const auto rates = [&](const ScheduleConfig& config) {
        Schedule schedule(config, 46848);
        std::vector<double> result;
        for (size_t i = 0; i < losses.size(); ++i) {
            result.push_back(schedule.next(static_cast<int64_t>(i), losses[i]).rate);
        }
        return result;
    };
    const std::vector<double> base = rates(plain);
    ScheduleConfig changed = plain;
    changed.compat.first_peak = true;
    std::vector<double> expected = base;
    expected[0] = 1e-3;
    EXPECT_EQ(rates(changed), expected);

    changed = plain;
    changed.compat.lag = true;
    const std::vector<double> late = rates(changed);
    EXPECT_NEAR(late[0], 1e-5, 1e-20);
    for (size_t i = 1; i <= 5; ++i) EXPECT_EQ(late[i], base[i - 1]);
    EXPECT_EQ(late[6], 1e-3);  // the switch
    EXPECT_EQ(late[11], 1e-7);

    changed = plain;
    changed.compat.late_decay = true;
    const std::vector<double> skipped = rates(changed);
    for (size_t i = 0; i < 5; ++i) EXPECT_EQ(skipped[i], base[i]);
    const double pi = std::acos(-1.0);
    for (size_t i = 5; i < 12; ++i) {
        const double part = (static_cast<double>(i) - 5 + 2) / (12 - 5 + 1);
        EXPECT_NEAR(skipped[i], 1e-7 + (1e-3 - 1e-7) * (1 + std::cos(pi * part)) / 2, 1e-17);
    }
}

TEST(PublishedSchedule, ResumeIsBitwise) {
    const json& row = golden("adaptive").at(0);
    const std::vector<double> losses = row.at("losses");
    const int64_t steps = static_cast<int64_t>(losses.size());
    const ScheduleConfig config =
        official(row.at("lr"), row.at("div"), row.at("target"), steps, LrDecayType::cosine);
    Schedule whole(config, row.at("kappa"));
    std::vector<double> rates;
    std::vector<ScheduleState> states;
    for (int64_t i = 0; i < steps; ++i) {
        rates.push_back(whole.next(i, losses[static_cast<size_t>(i)]).rate);
        states.push_back(whole.state());
    }
    for (int64_t done = 1; done < steps; ++done) {
        Schedule resumed(config, row.at("kappa"));
        resumed.restore(states[static_cast<size_t>(done - 1)]);
        for (int64_t i = done; i < steps; ++i) {
            EXPECT_EQ(resumed.next(i, losses[static_cast<size_t>(i)]).rate,
                      rates[static_cast<size_t>(i)]);
        }
    }
}

TEST(PublishedSchedule, SwitchesThatFitNothingAreRefused) {
    EXPECT_THROW(Schedule(official(1e-3, 100, 3.2, 20, LrDecayType::wsd), 46848), UsageError);
    ScheduleConfig config = onecycle(1e-3, 100, 1e4, 20, 5, "cosine");
    config.decay.type = LrDecayType::linear;
    EXPECT_THROW(Schedule(config, 1.0), UsageError);
    EXPECT_THROW(Schedule(onecycle(1e-3, 100, 1e4, 20, 1, "cosine"), 1.0), UsageError);
    // (1/49) 49 is below 1: no division by zero, and no error in the published code either.
    EXPECT_NO_THROW(Schedule(onecycle(1e-3, 100, 1e4, 49, 1, "cosine"), 1.0));
    EXPECT_THROW(Schedule(official(1e-3, 100, 3.2, 20, LrDecayType::cosine), 0.0), UsageError);
}

}  // namespace
}  // namespace lmo
