// Sums, norms and the clip factor.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

class ReductionsTest : public BackendTest {};

TEST_P(ReductionsTest, SumScalesAndAccumulates) {
    for (const DType type : {DType::f64, DType::f32, DType::bf16}) {
        for (const int64_t count : {1, 5, 1024, 1025, 200000}) {
            const Values x = round_to(type, random_values(count, 1));
            double exact = 0, size = 0;
            for (const double value : x) {
                exact += value;
                size += std::abs(value);
            }
            Sum op{put(type, {count}, x), blank(DType::f64, {1}), 0.5, false};
            backend_->sum(op);
            EXPECT_NEAR(get(op.out)[0], 0.5 * exact, 1e-14 * size);
            op.accumulate = true;
            backend_->sum(op);
            EXPECT_NEAR(get(op.out)[0], exact, 1e-14 * size);
        }
    }
}

TEST_P(ReductionsTest, SumOfNanIsNan) {
    const Sum op{put(DType::f32, {3}, {1, NAN, 2}), blank(DType::f64, {1}), 1.0, false};
    backend_->sum(op);
    EXPECT_TRUE(std::isnan(get(op.out)[0]));
}

TEST_P(ReductionsTest, SumOfSquaresOfAList) {
    for (const DType type : {DType::f64, DType::f32}) {
        const std::vector<int64_t> counts = {1, 100000, 64, 32768, 32769};
        std::vector<Tensor> tensors;
        Values exact;
        for (const int64_t count : counts) {
            const Values x = round_to(type, random_values(count, count));
            tensors.push_back(put(type, {count}, x));
            double sum = 0;
            for (const double value : x) sum += value * value;
            exact.push_back(sum);
        }
        SumOfSquares op{tensors, blank(DType::f64, {5}), {}};
        give_workspace(op);
        backend_->sum_of_squares(op);
        const Values out = get(op.out);
        for (int i = 0; i < 5; ++i) EXPECT_NEAR(out[i] / exact[i], 1, 1e-13);
    }
}

TEST_P(ReductionsTest, SumOfSquaresDoesNotOverflowFloat) {
    const std::vector<Tensor> tensors = {put(DType::f32, {2}, {3e30, 4e30})};
    SumOfSquares op{tensors, blank(DType::f64, {1}), {}};
    give_workspace(op);
    backend_->sum_of_squares(op);
    EXPECT_NEAR(std::sqrt(get(op.out)[0]) / 5e30, 1, 1e-6);
}

TEST_P(ReductionsTest, ClipFactor) {
    const auto run = [&](const Values& squares, double max_norm) {
        const ClipFactor op{put(DType::f64, {static_cast<int64_t>(squares.size())}, squares),
                            blank(DType::f64, {1}), blank(DType::f64, {1}), max_norm};
        backend_->clip_factor(op);
        return std::pair{get(op.norm)[0], get(op.factor)[0]};
    };
    EXPECT_EQ(run({9, 16}, 10.0), (std::pair{5.0, 1.0}));
    EXPECT_EQ(run({9, 16}, 0.0), (std::pair{5.0, 1.0}));
    EXPECT_EQ(run({0}, 1.0), (std::pair{0.0, 1.0}));
    EXPECT_EQ(run({9, 16}, 1.0), (std::pair{5.0, 1.0 / (5.0 + 1e-6)}));
    EXPECT_TRUE(std::isnan(run({9, NAN}, 1.0).second));
}

TEST_P(ReductionsTest, EqualBitsForAnyNumberOfThreads) {
    const auto once = [&] {
        const Tensor x = put(DType::f32, {300000}, random_values(300000, 1));
        const std::vector<Tensor> tensors = {x, x.slice(7, {1000})};
        SumOfSquares squares{tensors, blank(DType::f64, {2}), {}};
        give_workspace(squares);
        backend_->sum_of_squares(squares);
        const Sum sum{x, blank(DType::f64, {1}), 1.0, false};
        backend_->sum(sum);
        Values all = get(squares.out);
        all.push_back(get(sum.out)[0]);
        return all;
    };
    const Values first = once();
    EXPECT_EQ(once(), first);
    use_threads(1);
    EXPECT_EQ(once(), first);
}

TEST_P(ReductionsTest, CopyConvertsAndZeroClears) {
    const Values x = random_values(70001, 1);
    const Tensor wide = put(DType::f64, {70001}, x);
    for (const DType type : {DType::f64, DType::f32, DType::bf16}) {
        const Tensor narrow = blank(type, {70001}), back = blank(DType::f64, {70001});
        backend_->copy(narrow, wide);
        EXPECT_EQ(get(narrow), round_to(type, x));
        backend_->copy(back, narrow);
        EXPECT_EQ(get(back), round_to(type, x));
        backend_->zero(narrow);
        EXPECT_EQ(get(narrow), Values(70001, 0.0));
    }
    const Tensor nan = put(DType::f32, {2}, {NAN, -INFINITY}), half = blank(DType::bf16, {2});
    backend_->zero(half);
    backend_->copy(half, nan);
    EXPECT_TRUE(std::isnan(get(half)[0]));
    EXPECT_EQ(get(half)[1], -INFINITY);
}

TEST_P(ReductionsTest, CaptureRunsAtLaunchOnly) {
    const Tensor x = put(DType::f64, {2}, {1, 2}), out = put(DType::f64, {1}, {0});
    const auto graph = backend_->capture([&] { backend_->sum({x, out, 1.0, true}); });
    EXPECT_EQ(get(out)[0], 0);
    graph->launch();
    graph->launch();
    backend_->synchronize();
    EXPECT_EQ(get(out)[0], 6);
}

LMO_ON_ALL_BACKENDS(ReductionsTest);

}  // namespace
}  // namespace lmo
