// Softmax cross-entropy and its gradient against plain loops and finite differences.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

template <typename T>
void cross_entropy(const Values& logits, const std::vector<int32_t>& targets, T scale,
                   Values& losses, Values& gradient) {
    const int64_t rows = static_cast<int64_t>(targets.size());
    const int64_t columns = static_cast<int64_t>(logits.size()) / rows;
    losses.assign(rows, 0.0);
    gradient.assign(logits.size(), 0.0);
    for (int64_t n = 0; n < rows; ++n) {
        if (targets[n] < 0) continue;
        const double* row = &logits[n * columns];
        T top = -std::numeric_limits<T>::infinity(), total = 0;
        for (int64_t i = 0; i < columns; ++i) top = std::max(top, static_cast<T>(row[i]));
        for (int64_t i = 0; i < columns; ++i) total += std::exp(static_cast<T>(row[i]) - top);
        losses[n] = std::log(total) + top - static_cast<T>(row[targets[n]]);
        for (int64_t i = 0; i < columns; ++i) {
            const T p = std::exp(static_cast<T>(row[i]) - top) / total;
            gradient[n * columns + i] = scale * (p - (i == targets[n] ? T(1) : T(0)));
        }
    }
}

class ClassifierTest : public BackendTest {
  protected:
    std::pair<Values, Values> run(DType type, const Values& logits,
                                  const std::vector<int32_t>& targets, double scale,
                                  bool aligned = true) {
        const int64_t rows = static_cast<int64_t>(targets.size());
        const Shape shape{rows, static_cast<int64_t>(logits.size()) / rows};
        const Classifier op{aligned ? put(type, shape, logits) : put_unaligned(type, shape, logits),
                            put_ids(targets), blank(master_of(type), {rows}), scale};
        backend_->classifier(op);
        return {get(op.losses), get(op.logits)};
    }

    void check(DType type, int64_t columns, const std::vector<int32_t>& targets,
               bool aligned = true) {
        SCOPED_TRACE(to_string(type) + " V " + std::to_string(columns));
        const int64_t rows = static_cast<int64_t>(targets.size());
        const Values logits = round_to(type, random_values(rows * columns, columns, 3.0));
        const auto [losses, gradient] = run(type, logits, targets, 0.125, aligned);
        Values exact, exact_gradient, plain, plain_gradient;
        cross_entropy<double>(logits, targets, 0.125, exact, exact_gradient);
        cross_entropy<float>(logits, targets, 0.125f, plain, plain_gradient);
        expect_accurate(master_of(type), losses, exact, plain);
        expect_accurate(type, gradient, exact_gradient, plain_gradient);
        for (int64_t n = 0; n < rows; ++n) {
            if (targets[n] < 0) {
                EXPECT_EQ(losses[n], 0);
            }
        }
        const auto [same_losses, untouched] = run(type, logits, targets, 0.0, aligned);
        EXPECT_EQ(same_losses, losses);
        EXPECT_EQ(untouched, logits);
    }
};

class ClassifierOracleTest : public ClassifierTest {};

TEST_P(ClassifierTest, LossesAndGradients) {
    for (const DType type : compute_types()) {
        for (const int64_t columns : {1, 2, 7, 8, 9, 65, 1000, 2500}) {
            const auto last = static_cast<int32_t>(columns - 1);
            const std::vector<int32_t> targets = {0, last, -1, last / 2};
            check(type, columns, targets);
            check(type, columns, targets, false);
        }
    }
}

// Rows that a small block reads and that a large one does, that fit into a block's shared memory
// and that do not, of each alignment.
TEST_P(ClassifierTest, LargeVocabularies) {
    for (const DType type : compute_types()) {
        check(type, 4096, {4095});
        check(type, 4097, {0, 4096, 5, 7, 4090});
        check(type, 50257, {50256, 3, -1});
        check(type, 50304, {50303});
    }
    check(DType::f32, 60000, {1, 59999});
    check(DType::bf16, 131071, {131070, 2});
}

TEST_P(ClassifierTest, EqualLogits) {
    for (const int64_t columns : {3, 5000}) {
        const double v = static_cast<double>(columns);
        const Values logits(static_cast<size_t>(columns), -7.5);
        const auto [losses, gradient] = run(DType::f32, logits, {1}, 2.0);
        EXPECT_NEAR(losses[0], std::log(v), 1e-6);
        EXPECT_NEAR(gradient[0], 2 / v, 1e-7);
        EXPECT_NEAR(gradient[1], 2 / v - 2, 1e-6);
    }
}

// One logit is far above the others, or all but one are masked.
TEST_P(ClassifierTest, ExtremeLogitsInLongRows) {
    const auto check = [&](DType type, int64_t columns, int32_t place) {
        const double big = round_to(type, {1e30})[0];
        Values logits(static_cast<size_t>(3 * columns), -big);
        logits[place] = big;            // found: no loss
        logits[columns + place] = big;  // missed
        for (int64_t i = 0; i < columns; ++i) logits[2 * columns + i] = -INFINITY;
        logits[2 * columns + 9] = 4.0;
        const auto [losses, gradient] = run(type, logits, {place, 3, 9}, 1.0);
        EXPECT_EQ(losses[0], 0);
        EXPECT_EQ(losses[1], static_cast<float>(2 * big));
        EXPECT_EQ(losses[2], 0);
        EXPECT_EQ(gradient[place], 0);
        EXPECT_EQ(gradient[place + 1], 0);
        EXPECT_EQ(gradient[columns + place], 1);
        EXPECT_EQ(gradient[columns + 3], -1);
        EXPECT_EQ(largest(Values(gradient.begin() + 2 * columns, gradient.end())), 0);
    };
    for (const DType type : {DType::f32, DType::bf16}) {
        for (const int64_t columns : {300, 5000}) {
            check(type, columns, 17);
            check(type, columns, static_cast<int32_t>(3 * columns / 4));  // other threads have it
        }
    }
}

TEST_P(ClassifierTest, ManyRowsMostOfThemIgnored) {
    const int64_t rows = 66000;
    std::vector<int32_t> targets(static_cast<size_t>(rows), -1);
    targets[65535] = targets[65999] = 1;
    const auto [losses, gradient] =
        run(DType::f32, Values(static_cast<size_t>(2 * rows), 1.0), targets, 1.0);
    EXPECT_NEAR(losses[65535], std::log(2.0), 1e-6);
    EXPECT_NEAR(losses[65999], std::log(2.0), 1e-6);
    EXPECT_EQ(losses[65998], 0);
    EXPECT_EQ(gradient[2 * 65535], 0.5);
    EXPECT_EQ(gradient[2 * 65999 + 1], -0.5);
    EXPECT_EQ(gradient[2 * 65998], 0);
}

TEST_P(ClassifierTest, EqualBitsInTwoRuns) {
    const Values logits = round_to(DType::bf16, random_values(2 * 5000, 1, 3.0));
    const auto first = run(DType::bf16, logits, {7, 4999}, 0.5);
    EXPECT_EQ(run(DType::bf16, logits, {7, 4999}, 0.5), first);
}

TEST_P(ClassifierTest, HugeLogitsZerosAndNan) {
    for (const DType type : {DType::f32, DType::bf16}) {
        const double big = round_to(type, {1e30})[0];
        const auto [losses, gradient] =
            run(type, {big, -big, big, 0, 0, 0, 1, NAN, 1, NAN, 1, 1}, {0, 1, 2, -1}, 1.0);
        EXPECT_NEAR(losses[0], std::log(2.0), 1e-6);
        EXPECT_NEAR(losses[1], std::log(3.0), 1e-6);
        EXPECT_TRUE(std::isnan(losses[2]));
        EXPECT_EQ(losses[3], 0);
        EXPECT_EQ(gradient[0], -0.5);
        EXPECT_EQ(gradient[1], 0);
        EXPECT_TRUE(std::isnan(gradient[6]));
        EXPECT_EQ(gradient[9], 0);  // an ignored row is 0 whatever it held
    }
}

TEST_P(ClassifierOracleTest, FiniteDifferences) {
    const std::vector<int32_t> targets = {2, 0, -1};
    const Values logits = random_values(21, 1);
    const auto loss = [&](const Values& x) {
        const Values losses = run(DType::f64, x, targets, 0.0).first;
        return 0.7 * (losses[0] + losses[1] + losses[2]);
    };
    const Values gradient = run(DType::f64, logits, targets, 0.7).second;
    EXPECT_LE(largest_difference(gradient, differences(logits, loss)), 1e-8);
}

// The float exponential inside, over its range: p / (1 - p) of two logits x and 0 is exp(x).
TEST_P(ClassifierTest, ExponentialIsAccurateOverItsRange) {
    for (double x = -80; x <= 0; x += 0.37) {
        const double logit = static_cast<float>(x);
        const Values gradient = run(DType::f32, {logit, 0}, {1}, 1.0).second;
        const double exact = std::exp(logit) / (1 + std::exp(logit));
        EXPECT_NEAR(gradient[0] / exact, 1, 4e-7) << "at " << logit;
    }
    EXPECT_EQ(run(DType::f32, {-200, 0}, {1}, 1.0).second[0], 0);
    EXPECT_EQ(run(DType::f32, {-INFINITY, 0}, {1}, 1.0).first[0], 0);
}

LMO_ON_ALL_BACKENDS(ClassifierTest);
LMO_ON_THE_ORACLE(ClassifierOracleTest);

}  // namespace
}  // namespace lmo
