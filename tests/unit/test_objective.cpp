// The objective behind delta_star "exact", its two minima, and the choice without its weight. The
// pinned numbers are those of dev/reference/schedule.py, which computes them by another route.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "llmc/schedule/objective.h"
#include "llmc/schedule/schedule.h"

namespace lmo {
namespace {

constexpr double kSigmaF = 1e-3;
constexpr double kDelta0 = 10.4 - 3.0, kDiv = 50;
constexpr double kBeforeJump = 15872, kAfterJump = 22016;  // kappa

struct Minimum {
    double delta_star, J;
};

TEST(PeakObjective, MinimaMatchTheReference) {
    const struct {
        double kappa;
        std::vector<Minimum> minima;
        size_t chosen;
    } rows[] = {
        {15872, {{0.60158317, 4.49592351e-3}}, 0},
        {22016, {{0.58679359, 3.02285708e-3}, {2.08054108, 2.97449136e-3}}, 1},
        {46848, {{2.30238477, 7.97782799e-4}}, 0},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.kappa);
        const PeakObjective objective = peak_objective(kDelta0, kDiv, kSigmaF * row.kappa);
        const std::vector<size_t> places = objective.minima();
        ASSERT_EQ(places.size(), row.minima.size());
        for (size_t i = 0; i < places.size(); i++) {
            EXPECT_NEAR(objective.delta_star[places[i]], row.minima[i].delta_star, 1e-8);
            EXPECT_NEAR(objective.J[places[i]] / row.minima[i].J, 1.0, 1e-7);
        }
        EXPECT_EQ(objective.chosen(), places[row.chosen]);
        EXPECT_EQ(objective.delta_star[objective.chosen()],
                  exact_delta_star(kDelta0, kDiv, row.kappa, kSigmaF));
    }
}

TEST(PeakObjective, MinimaAtTheEndsCountAndAPlateauCountsOnce) {
    PeakObjective objective;
    objective.J = {1, 2, 0, 0, 3, 3, 2};
    EXPECT_EQ(objective.minima(), (std::vector<size_t>{0, 2, 6}));
    EXPECT_EQ(objective.chosen(), 2u);
}

// What dev/docs/objective.md's map rests on: delta_star/delta0 depends on div and on
// sigma_F kappa delta0^2 alone, but for the candidates' spacing and their distance from the ends.
TEST(PeakObjective, DependsOnTheScaledSharpnessAlone) {
    for (const double sharpness : {10.0, 869.0, 2565.0, 1e5, 1e7}) {
        for (const double div : {2.0, 50.0, 1000.0}) {
            const PeakObjective small = peak_objective(2.5, div, sharpness / 6.25);
            const PeakObjective large = peak_objective(10.0, div, sharpness / 100.0);
            EXPECT_NEAR(small.delta_star[small.chosen()] / 2.5,
                        large.delta_star[large.chosen()] / 10.0, 2.0 / 500)
                << sharpness << ' ' << div;
        }
    }
}

TEST(Unweighted, PartOfTheFirstGapMatchesTheReference) {
    const struct {
        double div, part;
    } rows[] = {{1.5, 0.61755697}, {2, 0.50884761},    {5, 0.34234660},  {50, 0.29537266},
                {100, 0.28701973}, {1000, 0.23107931}, {1e4, 0.11956958}};
    for (const auto& row : rows) {
        SCOPED_TRACE(row.div);
        EXPECT_NEAR(unweighted_delta_star(1.0, row.div), row.part, 2e-7);
        EXPECT_EQ(unweighted_delta_star(7.5, row.div), 7.5 * unweighted_delta_star(1.0, row.div));
    }
}

TEST(Unweighted, IsTheLimitOfExact) {
    for (const double div : {2.0, 5.0, 50.0, 100.0, 1000.0}) {
        EXPECT_NEAR(unweighted_delta_star(7.75, div), exact_delta_star(7.75, div, 46848, 1e-15),
                    7.75 / 499)
            << div;
    }
}

// The choice of a run whose first loss is 10.4.
double chosen_by(DeltaStarMode mode, double kappa, double div) {
    ScheduleConfig config;
    config.lr = 2e-3;
    config.steps = 100;
    config.warmup.type = WarmupType::adaptive;
    config.warmup.target_loss = 3.0;
    config.warmup.div = div;
    config.warmup.delta_star_mode = mode;
    Schedule schedule(config, kappa);
    schedule.next(0, 10.4);
    return schedule.curve().value().delta_star / kDelta0;
}

TEST(Unweighted, HasNoJumpWhereExactJumps) {
    double largest = 0.0;
    double exact = chosen_by(DeltaStarMode::exact, kBeforeJump, kDiv);
    const double unweighted = chosen_by(DeltaStarMode::unweighted, kBeforeJump, kDiv);
    for (int i = 1; i <= 32; i++) {  // steps of 1%
        const double kappa = kBeforeJump * std::pow(kAfterJump / kBeforeJump, i / 32.0);
        const double next = chosen_by(DeltaStarMode::exact, kappa, kDiv);
        largest = std::max(largest, std::abs(next - exact));
        exact = next;
        EXPECT_EQ(chosen_by(DeltaStarMode::unweighted, kappa, kDiv), unweighted);
    }
    EXPECT_GT(largest, 0.19);
    for (const double kappa : {0.0, 1e2, 1e9}) {
        EXPECT_EQ(chosen_by(DeltaStarMode::unweighted, kappa, kDiv), unweighted);
    }
}

TEST(Unweighted, FallsSlowlyWithDiv) {
    const double step = 0.05;  // of ln div
    double previous = chosen_by(DeltaStarMode::unweighted, 1.0, kSmallestUnweightedDiv);
    for (double div = kSmallestUnweightedDiv * std::exp(step); div < kLargestUnweightedDiv;
         div *= std::exp(step)) {
        const double next = chosen_by(DeltaStarMode::unweighted, 1.0, div);
        EXPECT_LT(next, previous) << div;
        EXPECT_GT(next, previous - 0.5 * step) << div;
        previous = next;
    }
    // exact goes up meanwhile, and most of it in one step.
    double largest = 0.0;
    for (double div = 26; div < 40; div *= std::exp(step)) {
        largest = std::max(largest, chosen_by(DeltaStarMode::exact, 30000, div * std::exp(step)) -
                                        chosen_by(DeltaStarMode::exact, 30000, div));
    }
    EXPECT_GT(largest, 0.15);
}

}  // namespace
}  // namespace lmo
