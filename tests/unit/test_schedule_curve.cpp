// The curve of the adaptive warm-up and the choice of its peak. The pinned numbers are those of
// dev/reference/schedule.py, which computes them by another route.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "llmc/core/error.h"
#include "llmc/schedule/schedule.h"

namespace lmo {
namespace {

constexpr double kMuon124M = 46848;  // kappa

// A number as it is printed with as many decimals as `like` has.
std::string printed(double value, const std::string& like) {
    const size_t point = like.find('.');
    const int decimals = point == std::string::npos ? 0 : static_cast<int>(like.size() - point - 1);
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", decimals, value);
    return text;
}
void expect_printed(double value, const std::string& expected) {
    EXPECT_EQ(printed(value, expected), expected);
}
void expect_relative(double value, double expected, double tolerance) {
    EXPECT_NEAR(value, expected, tolerance * std::abs(expected));
}

struct PeakRow {
    double lr, div, loss0, target, kappa;
    const char *delta_star, *K0, *K1, *K2;
};

TEST(ScheduleCurve, ExactPeakAndCoefficientsMatchTheReferenceToThePrintedDigits) {
    const PeakRow rows[] = {
        {1e-3, 100, 10.95, 3.2, 46848, "2.48855711", "171641.54", "-136944.63", "27715.785"},
        {2e-3, 100, 10.95, 3.2, 46848, "2.48855711", "85820.77", "-68472.313", "13857.892"},
        {1e-3, 100, 10.95, 3.2, 92928, "2.55052104", "184618.44", "-143769.19", "28380.317"},
        {1e-3, 100, 10.95, 3.5, 123568128, "0.78426854", "10209.993", "-25036.981", "16599.532"},
        {1e-2, 2, 10.95, 4.2, 61, "3.43569138", "725.34759", "-322.24258", "61.449433"},
        {1e-2, 5, 10.95, 4.3, 61, "2.21557114", "664.01464", "-499.40719", "135.27148"},
        {1e-2, 2, 10.95, 4.2, 121, "3.42220441", "713.84247", "-317.18283", "60.952355"},
        {1e-3, 100, 11.0, 3.2, 46848, "2.50458918", "172744.2", "-136942.15", "27537.879"},
        {1e-3, 100, 11.0, 3.2, 123568128, "0.75837675", "8956.8284", "-22621.052", "15573.428"},
        {1e-3, 100, 11.0, 3.2, 61, "1.67825651", "58035.833", "-68162.053", "20605.328"},
    };
    for (const PeakRow& row : rows) {
        SCOPED_TRACE(std::to_string(row.loss0) + " kappa " + std::to_string(row.kappa));
        const double delta0 = row.loss0 - row.target;
        const double delta_star = exact_delta_star(delta0, row.div, row.kappa, 1e-3);
        const WarmupCurve curve = warmup_curve(row.lr, row.div, delta0, delta_star);
        expect_printed(curve.delta_star, row.delta_star);
        expect_printed(curve.K0, row.K0);
        expect_printed(curve.K1, row.K1);
        expect_printed(curve.K2, row.K2);
    }
}

TEST(ScheduleCurve, PeakMovesSmoothlyWithTheFirstLoss) {
    const double losses[] = {10.85, 10.88, 10.91, 10.94, 10.95, 10.97,
                             10.98, 11.00, 11.03, 11.06, 11.09};
    const char* expected[] = {"2.456", "2.466", "2.476", "2.485", "2.489", "2.495",
                              "2.498", "2.505", "2.530", "2.540", "2.549"};
    for (size_t i = 0; i < std::size(losses); i++) {
        expect_printed(exact_delta_star(losses[i] - 3.2, 100, kMuon124M, 1e-3), expected[i]);
    }
}

TEST(ScheduleCurve, PeakJumpsBetweenTheTwoMinimaOfTheObjective) {
    expect_printed(exact_delta_star(10.4 - 3.0, 50, 15872, 1e-3), "0.60");
    expect_printed(exact_delta_star(10.4 - 3.0, 50, 22016, 1e-3), "2.08");
    expect_printed(exact_delta_star(10.4 - 3.0, 50, 46848, 1e-3), "2.30");
}

TEST(ScheduleCurve, PeakNeedsAGapForItsCandidates) {
    EXPECT_THROW(exact_delta_star(0.02, 100, kMuon124M, 1e-3), Error);
    EXPECT_THROW(exact_delta_star(-1.0, 100, kMuon124M, 1e-3), Error);
    const double star = exact_delta_star(0.021, 100, kMuon124M, 1e-3);
    EXPECT_GE(star, 0.01);
    EXPECT_LE(star, 0.011);
}

struct RateRow {
    double loss, rate;
};
void expect_rates(const std::vector<RateRow>& rows, double lr, double div, double target,
                  double delta0, double delta_star) {
    for (const RateRow& row : rows) {
        SCOPED_TRACE(row.loss);
        expect_relative(warmup_rate(row.loss - target, lr, div, delta0, delta_star), row.rate,
                        1e-5);
    }
}

TEST(ScheduleCurve, RateOfALossMatchesTheReference) {
    expect_rates({{11.2, 9.41293e-6},
                  {10.95, 1e-5},
                  {10, 1.30269e-5},
                  {9, 1.87265e-5},
                  {8, 3.13974e-5},
                  {7, 7.38324e-5},
                  {6.5, 1.53138e-4},
                  {6, 5.10173e-4}},
                 1e-3, 100, 3.2, 7.75, 2.48855711);
    expect_rates({{10, 1.16258e-5},
                  {9, 1.4023e-5},
                  {8, 1.76574e-5},
                  {7, 2.38063e-5},
                  {6, 3.63802e-5},
                  {5, 7.51999e-5},
                  {4.5, 1.50725e-4},
                  {4.2, 3.1952e-4}},
                 1e-3, 100, 3.5, 7.45, 0.38224449);
    expect_rates({{11.2, 4.72758e-3}, {10, 6.28046e-3}, {9, 8.07567e-3}, {8, 9.78989e-3}}, 1e-2, 2,
                 4.2, 6.75, 3.43569138);
}

TEST(ScheduleCurve, RateEqualsTheQuotientOfThePaper) {
    const WarmupCurve c = warmup_curve(1e-3, 100, 7.75, 2.5);
    for (double delta = 0.1; delta < 9.0; delta += 0.1) {
        const double quotient = delta / (c.K0 + c.K1 * delta + c.K2 * delta * delta);
        expect_relative(warmup_rate(delta, 1e-3, 100, 7.75, 2.5), quotient, 1e-9);
    }
}

TEST(ScheduleCurve, RateIsPositiveAtMostLrAndHasItsPeakAtDeltaStar) {
    const double lr = 3e-4;
    EXPECT_EQ(warmup_rate(2.5, lr, 100, 7.75, 2.5), lr);
    expect_relative(warmup_rate(7.75, lr, 100, 7.75, 2.5), lr / 100, 1e-15);
    double previous = 0.0;
    for (int i = 1; i <= 1000; i++) {
        const double delta = 0.01 * i, rate = warmup_rate(delta, lr, 100, 7.75, 2.5);
        EXPECT_GT(rate, 0.0);
        EXPECT_LE(rate, lr);
        if (delta < 2.499) {
            EXPECT_GT(rate, previous);
        } else if (delta > 2.511) {
            EXPECT_LT(rate, previous);
        }
        previous = rate;
    }
    EXPECT_LT(warmup_rate(9.0, lr, 100, 7.75, 2.5), lr / 100);  // no lower clip
    const double smallest = warmup_rate(1e-8, lr, 100, 7.75, 2.5);
    EXPECT_GT(smallest, 0.0);
    EXPECT_EQ(warmup_rate(0.0, lr, 100, 7.75, 2.5), smallest);
    EXPECT_EQ(warmup_rate(-3.0, lr, 100, 7.75, 2.5), smallest);
}

}  // namespace
}  // namespace lmo
