// Sums, norms and the clip factor.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

class ReductionsTest : public BackendTest {};

TEST_P(ReductionsTest, SumScalesAndAccumulates) {
    for (const DType type : compute_types()) {
        for (const int64_t count : {0, 1, 5, 1024, 1025, 200003}) {
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
    for (const DType type : master_types()) {
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

// More tensors than one launch of any implementation takes, at any address, some of them empty.
TEST_P(ReductionsTest, SumOfSquaresOfManySmallTensors) {
    const int64_t length = 40000;
    const Values x = round_to(DType::f32, random_values(length, 3));
    const Tensor flat = put(DType::f32, {length}, x);
    std::vector<Tensor> tensors;
    Values exact;
    for (int64_t i = 0; i < 700; ++i) {
        const int64_t offset = 13 * i, count = i == 600 ? 20001 : i % 11;
        tensors.push_back(flat.slice(offset, {count}));
        double sum = 0;
        for (int64_t j = offset; j < offset + count; ++j) sum += x[j] * x[j];
        exact.push_back(sum);
    }
    SumOfSquares op{tensors, blank(DType::f64, {700}), {}};
    give_workspace(op);
    backend_->sum_of_squares(op);
    const Values out = get(op.out);
    for (int i = 0; i < 700; ++i) ASSERT_NEAR(out[i], exact[i], 1e-13 * exact[i]) << i;

    SumOfSquares none{{}, raw(DType::f64, {0}), {}};
    give_workspace(none);
    backend_->sum_of_squares(none);
}

TEST_P(ReductionsTest, SumOfSquaresKeepsNanApart) {
    const std::vector<Tensor> tensors = {
        put(DType::f32, {2}, {1, NAN}), put(DType::f32, {2}, {3, 4}),
        put(DType::f32, {2}, {1, -INFINITY}), put(DType::f32, {2}, {1e-30, 0})};
    SumOfSquares op{tensors, blank(DType::f64, {4}), {}};
    give_workspace(op);
    backend_->sum_of_squares(op);
    const Values out = get(op.out);
    EXPECT_TRUE(std::isnan(out[0]));
    EXPECT_EQ(out[1], 25);
    EXPECT_EQ(out[2], INFINITY);
    EXPECT_NEAR(out[3] / 1e-60, 1, 1e-6);
}

// The order of the additions is a function of the number of elements alone.
TEST_P(ReductionsTest, EqualBitsAtAnyAddress) {
    for (const int64_t count : {3, 1000, 33333}) {
        const Values x = random_values(count, 5);
        Values first;
        for (const int64_t offset : {0, 1, 2, 3}) {
            const Tensor flat = blank(DType::f32, {count + 8}), place = flat.slice(offset, {count});
            backend_->copy(place, put(DType::f32, {count}, x));
            const std::vector<Tensor> tensors = {place};
            SumOfSquares op{tensors, blank(DType::f64, {2}).slice(0, {1}), {}};
            give_workspace(op);
            backend_->sum_of_squares(op);
            const Values sum = get(op.out);
            if (offset == 0) first = sum;
            EXPECT_EQ(sum, first) << "offset " << offset;
        }
    }
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
    EXPECT_EQ(run({9, INFINITY}, 1.0), (std::pair{double(INFINITY), 0.0}));
    EXPECT_EQ(run(Values(1000, 4.0), 0.0).first, std::sqrt(4000.0));
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
    for (const DType type : compute_types()) {
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

// Every bf16 number, and the middle between each and the next, which goes to the even one.
TEST_P(ReductionsTest, CopyRoundsToNearestEven) {
    Values numbers, middles;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        if ((bits & 0x7f80) == 0x7f80) continue;  // infinite or NaN
        const float number = bf16_to_float(static_cast<uint16_t>(bits));
        const uint32_t middle_bits = (bits << 16) + 0x8000;
        float middle;
        std::memcpy(&middle, &middle_bits, sizeof middle);
        numbers.push_back(number);
        middles.push_back(middle);
    }
    const int64_t count = static_cast<int64_t>(numbers.size());
    for (const DType type : {DType::f32, DType::f64}) {
        const Tensor half = blank(DType::bf16, {count});
        backend_->copy(half, put(type, {count}, numbers));
        EXPECT_EQ(get(half), numbers);
        backend_->copy(half, put(type, {count}, middles));
        EXPECT_EQ(get(half), round_to(DType::bf16, middles));
    }
    // From double through float: 1 + 2^-8 + 2^-40 is a middle there.
    const Tensor one = blank(DType::bf16, {1});
    backend_->copy(one, put(DType::f64, {1}, {1 + std::ldexp(1, -8) + std::ldexp(1, -40)}));
    EXPECT_EQ(get(one)[0], 1);
}

TEST_P(ReductionsTest, CopyConvertsSlices) {
    const Values x = round_to(DType::bf16, random_values(9000, 4));
    for (const DType from_type : {DType::f64, DType::f32, DType::bf16}) {
        for (const DType to_type : {DType::f64, DType::f32, DType::bf16}) {
            for (const auto& [from_offset, to_offset] : {std::pair{0, 1}, std::pair{3, 0}}) {
                const Tensor from = put(from_type, {9000}, x), to = blank(to_type, {9000});
                for (const int64_t count : {0, 1, 7, 8193}) {
                    const Tensor part = to.slice(to_offset, {count});
                    backend_->copy(part, from.slice(from_offset, {count}));
                    const Values expected(x.begin() + from_offset, x.begin() + from_offset + count);
                    ASSERT_EQ(get(part), expected);
                    ASSERT_TRUE(std::isnan(get(to)[to_offset + count])) << "wrote too much";
                }
            }
        }
    }
}

// fp16 is for devices whose matrix units prefer it: not for the CPU.
class Fp16Test : public ReductionsTest {};

TEST_P(Fp16Test, CopyConverts) {
    std::vector<uint16_t> bits, even;
    Values numbers, middles;
    for (uint32_t i = 0; i < 0x10000; ++i) {
        if ((i & 0x7c00) == 0x7c00 || (i & 0x7fff) == 0x7bff) continue;  // no finite neighbour
        const uint16_t half = static_cast<uint16_t>(i), next = static_cast<uint16_t>(i + 1);
        bits.push_back(half);
        even.push_back(half % 2 ? next : half);
        numbers.push_back(f16_to_float(half));
        middles.push_back((f16_to_float(half) + f16_to_float(next)) / 2);
    }
    const int64_t count = static_cast<int64_t>(bits.size());
    const Tensor half = raw(DType::f16, {count});
    const auto narrowed = [&](DType from, const Values& values) {
        backend_->copy(half, put(from, {count}, values));
        std::vector<uint16_t> out(static_cast<size_t>(count));
        backend_->copy_out(out.data(), half);
        return out;
    };
    for (const DType type : {DType::f64, DType::f32}) {
        EXPECT_EQ(narrowed(type, middles), even);
        EXPECT_EQ(narrowed(type, numbers), bits);
        const Tensor back = blank(type, {count});
        backend_->copy(back, half);
        EXPECT_EQ(get(back), numbers);
    }
    const Tensor bf16 = blank(DType::bf16, {count});
    backend_->copy(bf16, half);
    EXPECT_EQ(get(bf16), round_to(DType::bf16, numbers));
    backend_->copy(half, bf16);
    const Tensor back = blank(DType::f32, {count});
    backend_->copy(back, half);
    const Values wide = get(back), narrow = get(bf16);
    for (int64_t i = 0; i < count; ++i) {
        // bf16 has fewer bits but smaller numbers, and rounds some up to 65536.
        if (std::abs(narrow[i]) > 65504) {
            ASSERT_TRUE(std::isinf(wide[i]));
        } else if (std::abs(narrow[i]) >= 6.1e-5) {
            ASSERT_EQ(wide[i], narrow[i]);
        }
    }
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
LMO_ON_GPUS(Fp16Test);

}  // namespace
}  // namespace lmo
