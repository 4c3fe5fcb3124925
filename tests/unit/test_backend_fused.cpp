// FusedUpdate against the operations that it stands for, bit by bit, and against its formulas.
#include <cstring>
#include <functional>
#include <map>

#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

using Direction = FusedDirection::Type;

enum class Stage { stateless, momentum, started, later, adam, adam_inside };
const Stage kStages[] = {Stage::stateless, Stage::momentum, Stage::started,
                         Stage::later,     Stage::adam,     Stage::adam_inside};
bool is_adam(Stage stage) { return stage == Stage::adam || stage == Stage::adam_inside; }

// Sizes round the widths of vectors, pieces and blocks, and none.
const std::vector<int64_t> kSizes = {1, 0, 8193, 1024, 63, 17001, 2, 3};

class FusedUpdateTest : public BackendTest {
  protected:
    struct Lists {
        std::vector<Tensor> g, m, v, w, copies;
        std::vector<double> radius, decay;
    };

    // Tensors are slices with `gap` elements between them: at any address unless gap is 0.
    Lists make_lists(const std::vector<int64_t>& sizes, DType master, DType copy, int64_t gap,
                     double special = 0.0) {
        Lists lists;
        int64_t length = 8;
        for (const int64_t size : sizes) length += size + gap;
        std::vector<Tensor>* views[] = {&lists.g, &lists.m, &lists.v, &lists.w};
        for (uint64_t l = 0; l < 4; ++l) {
            Values values = noise(length, l + 1);
            if (l == 2) {
                for (double& value : values) value = std::abs(value);
            }
            if (special != 0.0) {
                for (size_t i = 5 + l; i < values.size(); i += 997) values[i] = special;
            }
            const Tensor flat = put(master, {length}, values);
            cut(flat, sizes, gap, *views[l]);
        }
        if (copy != DType::i32) cut(blank(copy, {length}), sizes, gap, lists.copies);
        for (size_t i = 0; i < sizes.size(); ++i) {
            lists.radius.push_back(1.0 + static_cast<double>(i / 2 % 3));
            lists.decay.push_back(i % 3 == 0 ? 0.0 : (i % 3 == 1 ? 0.1 : 1.0));
        }
        return lists;
    }
    // Random values, which take longer to make than all else.
    Values noise(int64_t count, uint64_t seed) {
        Values& known = noise_[seed];
        if (static_cast<int64_t>(known.size()) < count) known = random_values(count, seed);
        return {known.begin(), known.begin() + count};
    }
    static void cut(const Tensor& flat, const std::vector<int64_t>& sizes, int64_t gap,
                    std::vector<Tensor>& views) {
        int64_t at = gap > 0 ? 1 : 0;
        for (const int64_t size : sizes) {
            views.push_back(flat.slice(at, {size}));
            at += size + gap;
        }
    }

    std::variant<Momentum, Adam> stage_of(Stage stage, const Lists& l) {
        const Tensor factor = put(DType::f64, {1}, {0.7});
        const Tensor step = put(DType::f64, {1}, {stage == Stage::started ? 0.0 : 3.0});
        if (is_adam(stage)) {
            return Adam{l.g, l.m, l.v, factor, step, 0.8, 0.99, 1e-3, stage == Stage::adam_inside};
        }
        if (stage == Stage::stateless) return Momentum{l.g, {}, factor, 0.0, 1.5, 0.0, 0.0};
        Momentum op{l.g, l.m, factor, 0.9, 0.2, 0.95, 0.05};
        if (stage != Stage::momentum) op.step = step;
        return op;
    }
    Apply apply_of(const Lists& l, bool cautious) {
        Apply apply{l.w, {}, l.copies, put(DType::f64, {1}, {0.02}), 0.5, l.radius, l.decay};
        apply.cautious = cautious;
        return apply;
    }

    void run_fused(Stage stage, Direction direction, bool cautious, const Lists& l) {
        FusedUpdate op{stage_of(stage, l), {direction, 1e-8}, apply_of(l, cautious)};
        give_workspace(op);
        backend_->fused_update(op);
    }
    void run_chain(Stage stage, Direction direction, bool cautious, const Lists& l) {
        const auto momentum = stage_of(stage, l);
        if (is_adam(stage)) {
            backend_->adam(std::get<Adam>(momentum));
        } else {
            backend_->momentum(std::get<Momentum>(momentum));
        }
        if (direction == Direction::sign) backend_->sign({l.g});
        if (direction == Direction::frobenius) {
            FrobeniusNormalize normalise{l.g, 1e-8, {}};
            give_workspace(normalise);
            backend_->frobenius_normalize(normalise);
        }
        Apply apply = apply_of(l, cautious);
        apply.x = l.g;
        backend_->apply(apply);
    }

    // Their bits, but all NaN alike.
    std::vector<uint64_t> bits(const std::vector<Tensor>& list) {
        std::vector<uint64_t> result;
        for (const Tensor& tensor : list) {
            if (tensor.count() == 0) continue;
            for (const double value : get(tensor)) {
                uint64_t bits;
                std::memcpy(&bits, &value, sizeof bits);
                result.push_back(std::isnan(value) ? ~uint64_t{0} : bits);
            }
        }
        return result;
    }

    void for_directions(Stage stage, const std::function<void(Direction, bool)>& body) {
        for (const Direction direction :
             {Direction::identity, Direction::sign, Direction::frobenius}) {
            if (direction == Direction::frobenius && is_adam(stage)) continue;
            for (const bool cautious : {false, true}) body(direction, cautious);
        }
    }

    void expect_chain(const std::function<Lists()>& make, Stage stage, Direction direction,
                      bool cautious) {
        const Lists fused = make(), chain = make();
        const auto gradients = bits(fused.g), start = bits(fused.w);
        run_fused(stage, direction, cautious, fused);
        run_chain(stage, direction, cautious, chain);
        SCOPED_TRACE("stage " + std::to_string(static_cast<int>(stage)) + " direction " +
                     std::to_string(static_cast<int>(direction)) + (cautious ? " cautious" : ""));
        EXPECT_TRUE(bits(fused.w) == bits(chain.w)) << "weights";
        EXPECT_TRUE(bits(fused.m) == bits(chain.m)) << "first state";
        EXPECT_TRUE(bits(fused.v) == bits(chain.v)) << "second state";
        EXPECT_TRUE(bits(fused.copies) == bits(chain.copies)) << "copies";
        EXPECT_TRUE(bits(fused.g) == gradients) << "gradients were written";
        EXPECT_FALSE(bits(fused.w) == start) << "nothing moved";
    }

  private:
    std::map<uint64_t, Values> noise_;
};

TEST_P(FusedUpdateTest, IsTheChainBitForBit) {
    for (const DType master : master_types()) {
        for (const DType copy : {DType::i32 /* none */, DType::bf16, DType::f32}) {
            if (master == DType::f64 && copy == DType::f32) continue;
            for (const Stage stage : kStages) {
                for_directions(stage, [&](Direction direction, bool cautious) {
                    expect_chain([&] { return make_lists(kSizes, master, copy, 3); }, stage,
                                 direction, cautious);
                });
            }
        }
    }
}

// Side by side in memory, where neighbours may become one; and lists of more than a launch takes.
TEST_P(FusedUpdateTest, PlaceAndCompanyDoNotMatter) {
    std::vector<int64_t> many = {16385};
    for (int i = 0; i < 600; ++i) many.push_back(i % 10);
    for (const Stage stage : {Stage::stateless, Stage::momentum, Stage::adam}) {
        for_directions(stage, [&](Direction direction, bool cautious) {
            if (cautious) return;
            for (const int64_t gap : {0, 1}) {
                expect_chain([&] { return make_lists(many, DType::f32, DType::bf16, gap); }, stage,
                             direction, cautious);
            }
        });
    }
}

TEST_P(FusedUpdateTest, WhatIsNotFiniteSpreadsAsInTheChain) {
    const std::vector<int64_t> sizes = {1, 0, 3000, 8200};
    for (const double special : {double(NAN), double(INFINITY), 1e38, -0.0}) {
        for (const Stage stage : kStages) {
            for_directions(stage, [&](Direction direction, bool cautious) {
                expect_chain([&] { return make_lists(sizes, DType::f32, DType::bf16, 1, special); },
                             stage, direction, cautious);
            });
        }
    }
    // Normalised by its own norm: NaN in one tensor is none in another.
    const auto list = [&](const Values& a, const Values& b) {
        return std::vector<Tensor>{put(DType::f32, {2}, a), put(DType::f32, {2}, b)};
    };
    const Lists lists{list({1, NAN}, {3, 4}), {}, {}, list({0, 0}, {0, 0}), {}, {1, 1}, {0, 0}};
    run_fused(Stage::stateless, Direction::frobenius, false, lists);
    for (const double value : get(lists.w[0])) EXPECT_TRUE(std::isnan(value));
    const Values moved = get(lists.w[1]);
    EXPECT_NEAR(moved[0], -0.006, 1e-8);
    EXPECT_NEAR(moved[1], -0.008, 1e-8);
}

// Each weight and state within a few roundings of the formulas in double.
TEST_P(FusedUpdateTest, Formulas) {
    for (const DType master : master_types()) {
        const Lists lists = make_lists({4097}, master, DType::bf16, 1);
        const Values g = get(lists.g[0]), m = get(lists.m[0]), w = get(lists.w[0]);
        const double lr = 0.01, decay = 0.1, allowed = 20 * half_ulp(master);
        Lists used = lists;
        used.radius = {2.0};
        used.decay = {decay};
        run_fused(Stage::momentum, Direction::frobenius, false, used);
        double squares = 0.0;
        for (size_t i = 0; i < g.size(); ++i) {
            const double u = 0.9 * m[i] + 0.2 * 0.7 * g[i];
            squares += u * u;
        }
        const Values new_w = get(lists.w[0]), new_m = get(lists.m[0]);
        for (size_t i = 0; i < g.size(); ++i) {
            const double u = 0.9 * m[i] + 0.2 * 0.7 * g[i], x = u / (std::sqrt(squares) + 1e-8);
            ASSERT_NEAR(new_m[i], 0.95 * m[i] + 0.05 * 0.7 * g[i],
                        allowed * (std::abs(m[i]) + std::abs(g[i])));
            ASSERT_NEAR(new_w[i], w[i] - lr * (decay * w[i] + 2.0 * x),
                        allowed * (std::abs(w[i]) + lr));
        }
        EXPECT_EQ(get(lists.copies[0]), round_to(DType::bf16, new_w));
    }
}

TEST_P(FusedUpdateTest, EmptyLists) {
    for (const Stage stage : kStages) {
        for_directions(stage, [&](Direction direction, bool cautious) {
            run_fused(stage, direction, cautious, Lists{});
        });
    }
}

// A recorded update reads factor, step and rate at each run.
TEST_P(FusedUpdateTest, ReplaysReadTheScalarsAgain) {
    const auto issue = [&](const Lists& l, const Tensor& scalars, const Tensor& workspace) {
        const Tensor factor = scalars.slice(0, {1}), step = scalars.slice(1, {1});
        Apply apply{l.w, {}, l.copies, scalars.slice(2, {1}), 1.0, l.radius, l.decay};
        backend_->fused_update(
            {Adam{l.g, l.m, l.v, factor, step, 0.8, 0.99, 1e-3}, {}, apply, workspace});
        Momentum momentum{l.g, l.m, factor, 0.9, 0.1, 0.95, 0.05};
        momentum.step = step;
        backend_->fused_update({momentum, {Direction::frobenius, 1e-8}, apply, workspace});
    };
    const auto lists = [&] { return make_lists({5, 9000, 70}, DType::f32, DType::bf16, 1); };
    const Lists plain = lists(), recorded = lists();
    FusedUpdate largest{
        Momentum{plain.g, plain.m, {}, 0, 1, 0, 0}, {Direction::frobenius, 1e-8}, {}, {}};
    give_workspace(largest);
    const Tensor workspace = largest.workspace;
    const Values settings[] = {{1.0, 0, 0.1}, {0.5, 1, 0.3}, {0.25, 7, 0}};
    for (const Values& values : settings) issue(plain, put(DType::f64, {3}, values), workspace);
    const Tensor scalars = put(DType::f64, {3}, {NAN, NAN, NAN});
    const auto graph = backend_->capture([&] { issue(recorded, scalars, workspace); });
    for (const Values& values : settings) {
        backend_->copy_in(scalars, values.data());
        graph->launch();
    }
    EXPECT_EQ(bits(recorded.w), bits(plain.w));
    EXPECT_EQ(bits(recorded.m), bits(plain.m));
}

// The borders of the sums are fixed.
TEST_P(FusedUpdateTest, ThreadsDoNotMatter) {
    const auto once = [&] {
        const Lists lists = make_lists({100001, 7}, DType::f32, DType::bf16, 1);
        run_fused(Stage::momentum, Direction::frobenius, false, lists);
        return bits(lists.w);
    };
    const auto first = once();
    EXPECT_EQ(once(), first);
    use_threads(1);
    EXPECT_EQ(once(), first);
}

LMO_ON_ALL_BACKENDS(FusedUpdateTest);

}  // namespace
}  // namespace lmo
