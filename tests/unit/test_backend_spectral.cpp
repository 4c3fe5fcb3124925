// SpectralUpdate against the operations that it stands for, bit by bit.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

const std::vector<NewtonSchulzStep> kSteps(2, {3.4445, -4.7750, 2.0315});

enum class Stage { stateless, momentum, first, later };

class SpectralUpdateTest : public BackendTest {
  protected:
    struct Lists {
        std::vector<Tensor> all[4];  // gradients, momentum, weights, copies
        std::vector<Tensor>&g = all[0], &m = all[1], &w = all[2], &copies = all[3];
        std::vector<double> radius, decay;
        std::vector<Tensor> whole;  // with what lies between the matrices
    };

    // Matrices [rows, columns] with `gap` elements between them: at any address unless gap is 0.
    // copy i32: no copies.
    void fill(Lists& lists, size_t count, int64_t rows, int64_t columns, DType master, DType copy,
              int64_t gap) {
        const int64_t each = rows * columns + gap;
        const int64_t length = static_cast<int64_t>(count) * each + 1;
        for (size_t l = 0; l < 4; ++l) {
            if (l == 3 && copy == DType::i32) continue;
            lists.whole.push_back(l == 3 ? put(copy, {length}, Values(length, 7.0))
                                         : put(master, {length}, random_values(length, l + 1)));
            for (size_t i = 0; i < count; ++i) {
                const int64_t at = static_cast<int64_t>(i) * each + (gap > 0 ? 1 : 0);
                lists.all[l].push_back(lists.whole.back().slice(at, {rows, columns}));
            }
        }
        for (size_t i = 0; i < count; ++i) {
            lists.radius.push_back(0.5 + static_cast<double>(i % 3));
            lists.decay.push_back(i % 2 == 0 ? 0.1 : 0.0);
        }
    }

    Momentum momentum_of(Stage stage, const Lists& l) {
        const Tensor factor = put(DType::f64, {1}, {0.7});
        if (stage == Stage::stateless) return {l.g, {}, factor, 0.0, 1.5, 0.0, 0.0};
        Momentum op{l.g, l.m, factor, 0.9, 0.2, 0.95, 0.05};
        if (stage != Stage::momentum) {
            op.step = put(DType::f64, {1}, {stage == Stage::first ? 0.0 : 3.0});
        }
        return op;
    }

    NewtonSchulz iteration_of(const Lists& l, DType inner, bool gram) {
        NewtonSchulz op{l.g, kSteps, 1.01, 1e-7, {}, inner};
        op.form = gram ? NewtonSchulzForm::gram : NewtonSchulzForm::standard;
        give_workspace(op);
        return op;
    }

    Apply apply_of(const Lists& l, bool cautious) {
        Apply apply{l.w, {}, l.copies, put(DType::f64, {1}, {0.02}), 0.5, l.radius, l.decay};
        apply.cautious = cautious;
        return apply;
    }

    void expect_chain(Stage stage, size_t count, int64_t rows, int64_t columns, DType copy,
                      int64_t gap, DType inner, bool gram, bool cautious = false) {
        SCOPED_TRACE(std::to_string(count) + " x " + std::to_string(rows) + " x " +
                     std::to_string(columns) + ", gap " + std::to_string(gap) + ", stage " +
                     std::to_string(static_cast<int>(stage)) + ", " + to_string(inner));
        const DType master = has_fp64() && inner == DType::f32 ? DType::f64 : DType::f32;
        Lists fused, chain;
        fill(fused, count, rows, columns, master, copy, gap);
        fill(chain, count, rows, columns, master, copy, gap);

        NewtonSchulz iteration = iteration_of(fused, inner, gram);
        iteration.x = {};
        backend_->spectral_update(
            {momentum_of(stage, fused), iteration, apply_of(fused, cautious)});

        backend_->momentum(momentum_of(stage, chain));
        backend_->newton_schulz(iteration_of(chain, inner, gram));
        Apply apply = apply_of(chain, cautious);
        apply.x = chain.g;
        backend_->apply(apply);

        for (size_t l = 1; l < fused.whole.size(); ++l) {
            const Values actual = get(fused.whole[l]), expected = get(chain.whole[l]);
            EXPECT_TRUE(actual == expected) << "list " << l;
        }
    }

    std::vector<DType> inner_types() const {
        std::vector<DType> types;
        for (const DType type : {DType::f16, DType::bf16, DType::f32}) {
            if (backend_->has_newton_schulz(type)) types.push_back(type);
        }
        if (has_fp64()) std::swap(types.front(), types.back());  // f32 does everything there
        return types;
    }
    std::vector<DType> copy_types() const {
        if (has_fp64()) return {DType::i32};
        return {DType::i32, DType::bf16, DType::f32};
    }
};

TEST_P(SpectralUpdateTest, EveryShapeAndAddress) {
    for (const int64_t gap : {0, 3}) {
        for (const auto& [rows, columns] :
             {std::pair{1, 9}, std::pair{9, 1}, std::pair{16, 24}, std::pair{24, 16},
              std::pair{13, 70}, std::pair{70, 13}, std::pair{130, 67}}) {
            expect_chain(Stage::momentum, 3, rows, columns, copy_types().back(), gap,
                         inner_types().front(), false);
        }
    }
}

TEST_P(SpectralUpdateTest, EveryTypeAndStage) {
    for (const DType inner : inner_types()) {
        for (const DType copy : copy_types()) {
            for (const bool tall : {false, true}) {
                expect_chain(Stage::momentum, 2, tall ? 40 : 24, tall ? 24 : 40, copy, 0, inner,
                             false);
            }
        }
    }
    for (const Stage stage : {Stage::stateless, Stage::first, Stage::later}) {
        for (const bool tall : {false, true}) {
            for (const bool cautious : {false, true}) {
                expect_chain(stage, 2, tall ? 40 : 20, tall ? 20 : 40, copy_types()[0], 1,
                             inner_types()[0], true, cautious);
            }
        }
    }
}

// More matrices than are worked on together.
TEST_P(SpectralUpdateTest, LongLists) {
    expect_chain(Stage::first, 300, 3, 5, copy_types().back(), 1, inner_types()[0], false);
    expect_chain(Stage::stateless, 300, 5, 3, copy_types()[0], 1, inner_types()[0], true);
}

LMO_ON_ALL_BACKENDS(SpectralUpdateTest);

}  // namespace
}  // namespace lmo
