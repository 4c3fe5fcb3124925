// Updates of split weights against those of fp32 weights, bit by bit; and the halves themselves.
#include <functional>

#include "llmc/core/split_float.h"
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

// Round the widths of vectors, pieces and blocks, and none.
const std::vector<int64_t> kSizes = {1, 0, 8193, 1024, 63, 20001, 2, 7};

class SplitWeightsTest : public BackendTest {
  protected:
    using Floats = std::vector<float>;

    // Slices of one buffer with `gap` elements between them, at any address unless gap is 0.
    struct Slices {
        Tensor whole;
        std::vector<Tensor> list;
    };
    Slices slices(const Tensor& whole, const std::vector<Shape>& shapes, int64_t gap) const {
        Slices result{whole, {}};
        int64_t begin = gap > 0 ? 1 : 0;
        for (const Shape& shape : shapes) {
            result.list.push_back(whole.slice(begin, shape));
            begin += shape.count() + gap;
        }
        return result;
    }
    static int64_t length_of(const std::vector<Shape>& shapes, int64_t gap) {
        int64_t length = 8;
        for (const Shape& shape : shapes) length += shape.count() + gap;
        return length;
    }

    // The same weights twice, and what an update needs besides, twice too.
    struct Weights {
        Slices plain, high, low;
        Slices x[2], m[2], v[2], starts;
        std::vector<double> radius, decay;
    };

    Tensor put_floats(const Floats& values) {
        const Tensor tensor = raw(DType::f32, {static_cast<int64_t>(values.size())});
        backend_->copy_in(tensor, values.data());
        return tensor;
    }
    Floats floats(const Tensor& tensor) {
        Floats values(static_cast<size_t>(tensor.count()));
        backend_->copy_out(values.data(), tensor);
        return values;
    }

    Weights make_weights(const std::vector<Shape>& shapes, int64_t gap, const Floats& special) {
        const int64_t length = length_of(shapes, gap);
        const auto noise = [&](uint64_t seed) {
            const Values values = random_values(length, seed);
            return Floats(values.begin(), values.end());
        };
        Floats weights = noise(1), second = noise(2), directions = noise(3);
        for (size_t i = 0; i < special.size(); ++i) weights[3 + 2 * i] = special[i];
        if (!special.empty()) {  // finite weights that become NaN, with the largest payloads
            const uint32_t nan[] = {0x7fffffffu, 0xffffffffu};
            std::memcpy(&directions[45], nan, sizeof nan);
        }
        for (float& value : second) value = std::abs(value);
        std::vector<uint16_t> high;
        std::vector<int16_t> low;
        for (const float w : weights) {
            high.push_back(split_float(w).high);
            low.push_back(split_float(w).low);
        }
        const Tensor upper = raw(DType::bf16, {length}), lower = raw(DType::i16, {length});
        backend_->copy_in(upper, high.data());
        backend_->copy_in(lower, low.data());
        Weights w;
        w.plain = slices(put_floats(weights), shapes, gap);
        w.high = slices(upper, shapes, gap);
        w.low = slices(lower, shapes, gap);
        for (int side = 0; side < 2; ++side) {
            w.x[side] = slices(put_floats(directions), shapes, gap);
            w.m[side] = slices(put_floats(noise(4)), shapes, gap);
            w.v[side] = slices(put_floats(second), shapes, gap);
        }
        w.starts = slices(put_floats(noise(5)), shapes, gap);
        for (size_t i = 0; i < shapes.size(); ++i) {
            w.radius.push_back(1.0 + static_cast<double>(i % 3));
            w.decay.push_back(i % 2 == 0 ? 0.1 : 0.0);
        }
        return w;
    }

    // Side 0: fp32 weights; side 1: split ones. Without x.
    Apply apply_of(const Weights& w, int side) {
        Apply op;
        op.weights = side == 0 ? w.plain.list : w.high.list;
        if (side == 1) op.remainders = w.low.list;
        op.rate = put(DType::f64, {1}, {0.3});
        op.lr_scale = 0.5;
        op.radius = w.radius;
        op.decay = w.decay;
        return op;
    }

    // Both forms of the weights, what lies between them included, are the same numbers.
    void expect_same(const Weights& w) {
        const Floats expected = floats(w.plain.whole);
        std::vector<uint16_t> high(expected.size());
        std::vector<int16_t> low(expected.size());
        backend_->copy_out(high.data(), w.high.whole);
        backend_->copy_out(low.data(), w.low.whole);
        int64_t different = 0;
        for (size_t i = 0; i < expected.size(); ++i) {
            const float joined = join_float({high[i], low[i]});
            const bool same = std::isnan(expected[i])
                                  ? std::isnan(joined) && std::isnan(bf16_to_float(high[i]))
                                  : std::memcmp(&joined, &expected[i], sizeof joined) == 0 &&
                                        high[i] == split_float(expected[i]).high;
            different += !same;
        }
        EXPECT_EQ(different, 0);
    }

    void expect_same_update(const std::vector<Shape>& shapes, int64_t gap,
                            const std::function<void(const Weights&, int)>& update,
                            const Floats& special = {}) {
        const Weights w = make_weights(shapes, gap, special);
        expect_same(w);
        const Floats start = floats(w.plain.whole);
        update(w, 0);
        update(w, 1);
        expect_same(w);
        const Floats now = floats(w.plain.whole);
        EXPECT_NE(std::memcmp(start.data(), now.data(), 4 * now.size()), 0) << "nothing moved";
        for (const auto* state : {&w.x, &w.m, &w.v}) {
            const Floats one = floats((*state)[0].whole), other = floats((*state)[1].whole);
            EXPECT_EQ(std::memcmp(one.data(), other.data(), 4 * one.size()), 0);
        }
    }

    static std::vector<Shape> vectors(const std::vector<int64_t>& sizes) {
        std::vector<Shape> shapes;
        for (const int64_t size : sizes) shapes.push_back({size});
        return shapes;
    }

    // Halves between two bf16 numbers, and the ends of the range.
    static Floats special_values() {
        Floats values = {0.0f, -0.0f, 1.0f, 3.4e38f, -3.4e38f, 1e-45f, -1e-40f};
        for (const uint32_t bits : {0x3f808000u, 0x3f818000u, 0xbf808000u, 0x3f807fffu, 0x3f808001u,
                                    0x7f7fffffu, 0x7f7f8000u, 0x7f800000u, 0xff800000u, 0x7fc00000u,
                                    0x7fffffffu, 0xffffffffu, 0x7fff8000u}) {
            float value;
            std::memcpy(&value, &bits, sizeof value);
            values.push_back(value);
        }
        return values;
    }
};

TEST_P(SplitWeightsTest, ApplyInEveryVariant) {
    for (const int64_t gap : {0, 3}) {
        for (int variant = 0; variant < 5; ++variant) {
            SCOPED_TRACE("gap " + std::to_string(gap) + " variant " + std::to_string(variant));
            const bool sized = variant == 1 || variant == 4;
            const bool cautious = variant == 2 || variant == 4;
            const bool pulled = variant >= 3;
            const auto update = [&](const Weights& w, int side) {
                Apply op = apply_of(w, side);
                op.x = w.x[side].list;
                op.cautious = cautious;
                const auto count = static_cast<int64_t>(w.radius.size());
                if (sized) op.size = put(DType::f64, {count}, random_values(count, 9));
                if (pulled) op.starts = w.starts.list;
                if (pulled) op.step = put(DType::f64, {1}, {3.0});
                backend_->apply(op);
            };
            expect_same_update(vectors(kSizes), gap, update);
            expect_same_update(vectors({1, 100, 0, 9}), gap, update, special_values());
        }
    }
}

TEST_P(SplitWeightsTest, FusedUpdates) {
    using Direction = FusedDirection::Type;
    const Tensor factor = put(DType::f64, {1}, {0.7}), step = put(DType::f64, {1}, {3.0});
    for (const int64_t gap : {0, 1}) {
        for (int stage = 0; stage < 3; ++stage) {
            for (const Direction direction :
                 {Direction::identity, Direction::sign, Direction::frobenius}) {
                if (stage == 2 && direction == Direction::frobenius) continue;
                const auto update = [&](const Weights& w, int side) {
                    FusedUpdate op;
                    op.momentum = Momentum{w.x[side].list, {}, factor, 0.0, 1.5, 0.0, 0.0};
                    if (stage == 1) {
                        op.momentum =
                            Momentum{w.x[side].list, w.m[side].list, factor, 0.9, 0.2, 0.95, 0.05};
                    } else if (stage == 2) {
                        op.momentum =
                            Adam{w.x[side].list, w.m[side].list, w.v[side].list, factor, step, 0.8,
                                 0.99,           1e-3,           false};
                    }
                    op.direction = {direction, 1e-8};
                    op.apply = apply_of(w, side);
                    op.apply.cautious = gap == 0;
                    give_workspace(op);
                    backend_->fused_update(op);
                };
                SCOPED_TRACE("gap " + std::to_string(gap) + " stage " + std::to_string(stage) +
                             " direction " + std::to_string(static_cast<int>(direction)));
                expect_same_update(vectors(kSizes), gap, update);
                expect_same_update(vectors({50, 1, 60}), gap, update, special_values());
            }
        }
    }
}

TEST_P(SplitWeightsTest, SpectralUpdates) {
    const std::vector<NewtonSchulzStep> steps(2, {3.4445, -4.7750, 2.0315});
    const std::vector<DType> types =
        has_fp64() ? std::vector{DType::f32} : std::vector{DType::f16, DType::bf16, DType::f32};
    for (const auto& [rows, columns] : {std::pair{16, 24}, std::pair{24, 16}, std::pair{13, 70},
                                        std::pair{70, 13}, std::pair{130, 67}}) {
        for (const int64_t gap : {0, 3}) {
            for (const DType inner : types) {
                SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns) + ", gap " +
                             std::to_string(gap) + ", " + to_string(inner));
                expect_same_update(
                    std::vector<Shape>(3, Shape{rows, columns}), gap,
                    [&](const Weights& w, int side) {
                        SpectralUpdate op;
                        op.momentum = {w.x[side].list, w.m[side].list, {}, 0.9, 0.2, 0.95, 0.05};
                        op.iteration = {w.x[side].list, steps, 1.01, 1e-7, {}, inner};
                        give_workspace(op.iteration);
                        op.iteration.x = {};
                        op.apply = apply_of(w, side);
                        op.apply.cautious = gap == 3;
                        backend_->spectral_update(op);
                    });
            }
        }
    }
}

TEST_P(SplitWeightsTest, ClippedHeads) {
    const int heads = 6, kv_heads = 2;
    for (const int64_t columns : {8, 301}) {
        const std::vector<Shape> shapes = {Shape{heads * 5, columns}, Shape{kv_heads * 5, columns}};
        for (const int64_t gap : {0, 1}) {
            expect_same_update(shapes, gap, [&](const Weights& w, int side) {
                const std::vector<Tensor>& list = side == 0 ? w.plain.list : w.high.list;
                QkClip op{
                    list[0], list[1],  {}, {}, put(DType::f32, {heads}, {200, 50, 12, 75, -3, 1e6}),
                    heads,   kv_heads, 50};
                if (side == 1) op.q_remainder = w.low.list[0];
                if (side == 1) op.k_remainder = w.low.list[1];
                backend_->qk_clip(op);
            });
        }
    }
}

// More tensors than a launch takes, and one that several blocks share.
TEST_P(SplitWeightsTest, LongLists) {
    std::vector<int64_t> sizes = {40000};
    for (int i = 0; i < 600; ++i) sizes.push_back(i % 10);
    for (const int64_t gap : {0, 1}) {
        expect_same_update(vectors(sizes), gap, [&](const Weights& w, int side) {
            Apply op = apply_of(w, side);
            op.x = w.x[side].list;
            backend_->apply(op);
        });
    }
}

TEST_P(SplitWeightsTest, JoinedAgain) {
    for (const int64_t gap : {0, 1}) {
        const std::vector<Shape> shapes = vectors(kSizes);
        const Weights w = make_weights(shapes, gap, special_values());
        const Tensor whole = put_floats(Floats(static_cast<size_t>(w.plain.whole.count()), 7.0f));
        const Slices out = slices(whole, shapes, gap);
        backend_->join_weights({w.high.list, w.low.list, out.list});
        for (size_t i = 0; i < shapes.size(); ++i) {
            if (shapes[i].count() == 0) continue;
            const Floats expected = floats(w.plain.list[i]), actual = floats(out.list[i]);
            for (size_t k = 0; k < expected.size(); ++k) {
                if (std::isnan(expected[k])) {
                    ASSERT_TRUE(std::isnan(actual[k]));
                } else {
                    ASSERT_EQ(std::memcmp(&expected[k], &actual[k], 4), 0) << i << " " << k;
                }
            }
        }
        EXPECT_EQ(floats(whole).back(), 7.0f);
    }
    backend_->join_weights({});
}

LMO_ON_ALL_BACKENDS(SplitWeightsTest);

}  // namespace
}  // namespace lmo
