// The contractive compressors: the bytes they send, and that the receiver has the sender's bits.
#include <gtest/gtest.h>
#include <omp.h>

#include "llmc/core/error.h"
#include "tests/unit/compressor_sender.h"

namespace lmo {
namespace {

template <class T>
class CompressorOf : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CompressorOf, Types);

TEST(Compressor, Names) {
    EXPECT_EQ(to_string(CompressorConfig{}), "identity");
    EXPECT_EQ(to_string({Type::natural, 0.0, 0, false}), "natural");
    EXPECT_EQ(to_string(topk(0.1)), "topk 0.1");
    EXPECT_EQ(to_string(topk(0.05, true)), "topk 0.05 natural");
    EXPECT_EQ(to_string(columns(1.0)), "columns 1");
    EXPECT_EQ(to_string(rank_of(16, true)), "rank 16 natural");
}

TEST(Compressor, MessagesByHand) {
    using Values = std::vector<float>;
    const Values x{1, -5, 3, 0.5, 5, -2};  // 2 rows of 3
    const auto check = [&](const CompressorConfig& config, const Values& kept,
                           std::initializer_list<int> head, const Values& sent, Kept squares) {
        Sender<float> sender(config, {2, 3});
        EXPECT_EQ(sender.send(x), kept) << to_string(config);
        Bytes expected;
        for (const int byte : head) expected.push_back(static_cast<std::byte>(byte));
        const size_t begin = expected.size();
        expected.resize(begin + sent.size() * sizeof(float));
        if (!sent.empty()) {
            std::memcpy(expected.data() + begin, sent.data(), sent.size() * sizeof(float));
        }
        EXPECT_TRUE(sender.message == expected) << to_string(config);
        EXPECT_EQ(sender.kept.error, squares.error);
        EXPECT_EQ(sender.kept.total, squares.total);
    };
    check({}, x, {}, x, {0.0, 64.25});
    check({Type::natural, 0.0, 0, false}, {1, -4, 4, 0.5, 4, -2},
          {127, 129, 129, 126, 129, 128, 0b100010}, {}, {3.0, 64.25});
    check(topk(0.5), {0, -5, 3, 0, 5, 0}, {0b010110}, {-5, 3, 5}, {5.25, 64.25});
    check(topk(0.2), {0, -5, 0, 0, 5, 0}, {0b010010}, {-5, 5}, {14.25, 64.25});
    check(topk(0.1), {0, -5, 0, 0, 0, 0}, {0b000010}, {-5}, {39.25, 64.25});  // the first of two
    check(topk(0.5, true), {0, -4, 4, 0, 4, 0}, {0b010110, 129, 129, 129, 0b001}, {},
          {8.25, 64.25});
    check(topk(1.0), x, {}, x, {0.0, 64.25});
    check(columns(0.1), {0, -5, 0, 0, 5, 0}, {0b010}, {-5, 5}, {14.25, 64.25});
    check(columns(0.5), {0, -5, 3, 0, 5, -2}, {0b110}, {-5, 3, 5, -2}, {1.25, 64.25});
    check(columns(0.5, true), {0, -4, 4, 0, 4, -2}, {0b110, 129, 129, 129, 128, 0b1001}, {},
          {4.25, 64.25});
    check(columns(1.0), x, {}, x, {0.0, 64.25});
    check(rank_of(2), x, {}, x, {0.0, 64.25});  // 2 (2 + 3) >= 6 numbers
    check(rank_of(9, true), {1, -4, 4, 0.5, 4, -2}, {127, 129, 129, 126, 129, 128, 0b100010}, {},
          {3.0, 64.25});
}

// P and Q of a matrix whose only row that is not zero is the second: P is its unit vector.
TEST(Compressor, LowRankByHand) {
    Sender<double> sender(rank_of(1), {3, 4});
    EXPECT_EQ(sender.compressor.factor_shape(), (Shape{1, 4}));
    const std::vector<double> x{0, 0, 0, 0, 2, -4, 0, 4, 0, 0, 0, 0};
    EXPECT_EQ(sender.send(x), x);
    std::vector<double> sent(7);
    ASSERT_EQ(sender.message.size(), 56u);
    std::memcpy(sent.data(), sender.message.data(), 56);
    const double sign = sent[1];
    EXPECT_EQ(std::fabs(sign), 1.0);
    EXPECT_EQ(sent, (std::vector<double>{0, sign, 0, sign * 2, sign * -4, 0, sign * 4}));
    EXPECT_EQ(sender.kept.error, 0.0);
    EXPECT_EQ(sender.kept.total, 36.0);
    for (size_t i = 0; i < 4; ++i) EXPECT_DOUBLE_EQ(sender.factor[i], sent[3 + i] / 6.0);
}

TEST(Compressor, SizesOfMessages) {
    const auto bytes = [](const CompressorConfig& config, const Shape& shape, DType type) {
        return Compressor(config, shape, type).message_bytes();
    };
    const Shape matrix{768, 2048};
    constexpr size_t n = 768 * 2048, tenth = 157287;
    EXPECT_EQ(bytes({}, matrix, DType::f32), 4 * n);
    EXPECT_EQ(bytes({}, matrix, DType::f64), 8 * n);
    EXPECT_EQ(bytes({Type::natural, 0.0, 0, false}, matrix, DType::f64), n + n / 8);
    // Positions: three bits each, and as many as they are and eighths of all.
    const size_t positions = (3 * tenth + 7) / 8 + (tenth + (n - 1) / 8 + 7) / 8;
    EXPECT_EQ(bytes(topk(0.1), matrix, DType::f32), positions + 4 * tenth);
    EXPECT_EQ(bytes(topk(0.1), matrix, DType::f64), positions + 8 * tenth);
    EXPECT_EQ(bytes(topk(0.1, true), matrix, DType::f32), positions + tenth + (tenth + 7) / 8);
    EXPECT_EQ(bytes(topk(0.5), matrix, DType::f32), n / 8 + 2 * n);
    // Columns: 205 of 2048, from 205 * 3 bits and 205 + 255 bits.
    EXPECT_EQ(bytes(columns(0.1), matrix, DType::f32), 77 + 58 + 4 * 768 * 205);
    EXPECT_EQ(bytes(rank_of(16), matrix, DType::f32), 4 * 16 * (768 + 2048));
    EXPECT_EQ(bytes(rank_of(16, true), matrix, DType::f32), 18 * (768 + 2048));
    EXPECT_EQ(bytes(rank_of(558), matrix, DType::f32), 4 * 558 * (768 + 2048));
    EXPECT_EQ(bytes(rank_of(559), matrix, DType::f32), 4 * n);
    // Vectors, as one row or one column.
    EXPECT_EQ(bytes(topk(0.25), Shape{8}, DType::f32), 1 + 4 * 2);
    EXPECT_EQ(bytes(columns(0.25), Shape{8}, DType::f32), 4 * 8);
    EXPECT_EQ(bytes(columns(0.25), Shape{8, 1}, DType::f32), 4 * 8);
    EXPECT_EQ(bytes(columns(0.25), Shape{1, 8}, DType::f32), 1 + 4 * 2);
    EXPECT_EQ(bytes(rank_of(3), Shape{8}, DType::f32), 4 * 8);
    EXPECT_EQ(bytes(rank_of(3), Shape{1, 8}, DType::f32), 4 * 8);
    EXPECT_EQ(bytes(rank_of(3, true), Shape{9}, DType::f32), 9 + 2);
    EXPECT_EQ(bytes(topk(0.5), Shape{1}, DType::f32), 4);
    // A product that is whole but for rounding is whole: 0.07 * 100 > 7.
    EXPECT_EQ(bytes(columns(0.07), Shape{5, 100}, DType::f32), 6 + 4 * 5 * 7);
    EXPECT_EQ(bytes(columns(0.070001), Shape{5, 100}, DType::f32), 6 + 4 * 5 * 8);
}

TYPED_TEST(CompressorOf, ManyShapes) {
    using T = TypeParam;
    for (uint64_t t = 0; t < 300; ++t) {
        const auto below = [&](uint64_t limit, uint64_t i) {
            return static_cast<int64_t>(random_bits(13, t, i) % limit);
        };
        const Shape shape =
            t % 5 ? Shape{1 + below(40, 0), 1 + below(40, 1)} : Shape{1 + below(300, 0)};
        CompressorConfig config;
        config.type = static_cast<Type>(below(5, 2));
        config.fraction = 0.001 * static_cast<double>(1 + below(1000, 3));
        config.rank = 1 + below(8, 4);
        config.natural = below(2, 5) && config.type != Type::identity;
        Sender<T> sender(config, shape);
        for (int kind = 0; kind < kKinds; ++kind) {
            sender.send(input<T>(kind, shape.rows(), shape.columns(), 40 + t));
            ASSERT_LE(sender.kept.error, sender.kept.total)
                << to_string(config) << ", " << to_string(shape) << ", input " << kind;
        }
    }
}

TYPED_TEST(CompressorOf, NumbersThatAreNotFiniteTravel) {
    using T = TypeParam;
    const T nan = static_cast<T>(std::nan("")), infinity = static_cast<T>(kInfinity);
    std::vector<T> x = gaussian<T>(60, 80);
    x[7] = -infinity;
    x[20] = nan;
    for (const CompressorConfig& config :
         {CompressorConfig{}, topk(0.05), topk(0.5), columns(0.2)}) {
        Sender<T> sender(config, {10, 6});
        const std::vector<T> c = sender.send(x);
        EXPECT_EQ(c[7], -infinity);
        EXPECT_TRUE(std::isnan(c[20]));
    }
    for (const CompressorConfig& config :
         {CompressorConfig{Type::natural, 0.0, 0, false}, topk(0.05, true), columns(0.2, true)}) {
        Sender<T> sender(config, {10, 6});
        const std::vector<T> c = sender.send(x);
        EXPECT_TRUE(std::isnan(c[7]));
        EXPECT_TRUE(std::isnan(c[20]));
        EXPECT_TRUE(std::isnan(sender.kept.error));
    }
    for (const size_t i : {size_t{7}, size_t{20}}) {
        std::vector<T> one = gaussian<T>(60, 80);
        one[i] = x[i];
        for (const int64_t rank : {1, 2}) {
            Sender<T> sender(rank_of(rank), {10, 6});
            for (const T value : sender.send(one)) EXPECT_TRUE(std::isnan(value));
        }
    }
}

TYPED_TEST(CompressorOf, AnyNumberOfThreads) {
    using T = TypeParam;
    const int threads = omp_get_max_threads();
    const int64_t m = 190, n = 1030;
    for (const CompressorConfig& config :
         {CompressorConfig{}, CompressorConfig{Type::natural, 0.0, 0, false}, topk(0.3, true),
          columns(0.4), rank_of(5), rank_of(6, true)}) {
        Sender<T> one(config, {m, n}), three = one;
        const std::vector<T> x = gaussian<T>(m * n, 90);
        omp_set_num_threads(1);
        const std::vector<T> c = one.send(x);
        omp_set_num_threads(3);
        EXPECT_TRUE(three.send(x) == c) << to_string(config);
        EXPECT_TRUE(three.message == one.message);
        EXPECT_TRUE(three.factor == one.factor);
        EXPECT_EQ(three.kept.error, one.kept.error);
        EXPECT_EQ(three.kept.total, one.kept.total);
    }
    omp_set_num_threads(threads);
}

TEST(Compressor, FactorsStartAtRandom) {
    const Compressor compressor(rank_of(3), {50, 40}, DType::f64);
    const auto start = [&](uint64_t seed, const std::string& name) {
        std::vector<double> factor(static_cast<size_t>(compressor.factor_elements()));
        compressor.start_factor(factor.data(), seed, name);
        return factor;
    };
    const auto factor = start(1, "a.weight");
    EXPECT_EQ(factor.size(), 120u);
    EXPECT_NEAR(squares(factor), 3.0, 1.5);
    EXPECT_TRUE(factor == start(1, "a.weight"));
    EXPECT_FALSE(factor == start(1, "b.weight"));
    EXPECT_FALSE(factor == start(2, "a.weight"));
    for (const CompressorConfig& config :
         {CompressorConfig{}, topk(0.1), columns(0.1), rank_of(40)}) {
        EXPECT_EQ(Compressor(config, {50, 40}, DType::f64).factor_elements(), 0);
        EXPECT_EQ(Compressor(config, {50, 40}, DType::f64).factor_shape().count(), 0);
    }
}

TYPED_TEST(CompressorOf, BytesThatAreNoMessage) {
    using T = TypeParam;
    int refused = 0, read = 0;
    for (uint64_t t = 0; t < 400; ++t) {
        const CompressorConfig configs[] = {{},         {Type::natural, 0.0, 0, false},
                                            topk(0.1),  columns(0.5, true),
                                            rank_of(2), rank_of(2, true)};
        const Compressor compressor(configs[t % 6], {7, 10}, dtype<T>);
        Bytes message(compressor.message_bytes());
        for (size_t i = 0; i < message.size(); ++i) {
            message[i] = static_cast<std::byte>(random_bits(14, t, i));
        }
        std::vector<T> to(70);
        try {
            compressor.read(message.data(), to.data());
            ++read;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("increasing positions below"),
                      std::string::npos);
            ++refused;
        }
    }
    EXPECT_GT(refused, 66);
    EXPECT_GE(read, 266);
}

}  // namespace
}  // namespace lmo
