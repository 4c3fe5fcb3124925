// What travels between ranks in which part of a step (llmc/train/overlap.h), and that a step says
// truly when it reads weights and has completed gradients.
#include "llmc/train/overlap.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/unit/tiny_llama.h"

namespace lmo {
namespace {

LlamaConfig small_model(bool tied) {
    LlamaConfig config;
    config.n_layer = 3;
    config.n_head = config.n_kv_head = 2;
    config.d_model = 16;
    config.d_ff = 24;
    config.vocab_size = 40;
    config.seq_len = 8;
    config.tie_embeddings = tied;
    return config;
}

std::vector<Piece> whole_parameters(const ParameterList& list) {
    std::vector<Piece> pieces;
    for (int p = 0; p < list.size(); ++p) {
        pieces.push_back({p % 3, list.offset(p), list[p].shape.count()});
    }
    return pieces;
}

TEST(Overlap, EveryPieceTravelsOnceEachWay) {
    for (const bool tied : {false, true}) {
        const LlamaConfig model = small_model(tied);
        const ParameterList list = llama_parameters(model);
        const std::vector<Piece> pieces = whole_parameters(list);
        for (const int64_t least : {1, 1500, 4000, 1000000}) {
            const Overlap overlap(list, model.n_layer, pieces, least);
            for (const auto* buckets : {&overlap.gradients, &overlap.weights}) {
                std::map<int64_t, int64_t> seen;
                size_t milestones = 0;
                for (size_t i = 0; i < buckets->size(); ++i) {
                    int64_t elements = 0;
                    for (const Piece& piece : (*buckets)[i].pieces) {
                        EXPECT_TRUE(seen.emplace(piece.offset, piece.count).second);
                        elements += piece.count;
                    }
                    if (i + 1 < buckets->size()) {
                        EXPECT_GE(elements, least);
                    }
                    milestones += (*buckets)[i].milestones.size();
                }
                EXPECT_EQ(seen.size(), pieces.size());
                EXPECT_EQ(milestones, static_cast<size_t>(model.n_layer + 2));
                EXPECT_EQ(buckets->size(), least == 1         ? size_t{5}
                                           : least == 1000000 ? size_t{1}
                                                              : buckets->size());
            }
        }
    }
}

TEST(Overlap, FromTheEndForGradientsAndFromTheStartForWeights) {
    const LlamaConfig model = small_model(true);
    const ParameterList list = llama_parameters(model);
    const Overlap overlap(list, model.n_layer, whole_parameters(list), 1);
    EXPECT_EQ(overlap.weights.front().pieces.front().offset, 0);  // embedding
    EXPECT_EQ(overlap.gradients.back().pieces.front().offset, 0);
    const int64_t last = list.offset(list.size() - 1);
    EXPECT_EQ(overlap.weights.back().pieces.back().offset, last);
    EXPECT_EQ(overlap.gradients.front().pieces.back().offset, last);
    for (const auto* buckets : {&overlap.gradients, &overlap.weights}) {
        for (const Bucket& bucket : *buckets) {
            for (const size_t milestone : bucket.milestones) {
                EXPECT_GE(milestone, kFirstFreeMilestone);
            }
        }
    }
    EXPECT_NE(overlap.gradients[0].milestones, overlap.weights[0].milestones);
}

// The step runs when its operations are issued, on the processor: what a section's gradients are
// when it is completed is what they are at the end, and weights that are put in place only when the
// step says that it reads them give the same numbers.
class StepSectionsTest : public ::testing::TestWithParam<std::tuple<bool, int64_t>> {};

TEST_P(StepSectionsTest, AreReadAndCompletedAsTheStepSays) {
    const LlamaConfig config = small_model(std::get<0>(GetParam()));
    const int64_t lowest = std::get<1>(GetParam());
    TinyLlama model(config, kFp64, 2);
    const std::vector<double> weights = lively_weights(model.list, 3);
    const Ids ids = random_ids(2, 8, 40, 1), goals = random_ids(2, 8, 40, 2);
    model.set_weights(weights);
    model.forward_backward(ids, goals, 1.0, lowest);
    const std::vector<double> expected = model.gradients();

    const auto elements = [&](int64_t section, auto visit) {
        for (int p = 0; p < model.list.size(); ++p) {
            if (section_of(model.list[p], config.n_layer) != section) continue;
            for (int64_t i = 0; i < model.list[p].shape.count(); ++i) {
                visit(static_cast<size_t>(model.list.offset(p) + i));
            }
        }
    };
    model.zero_gradients();
    model.set_weights(std::vector<double>(weights.size(), NAN));
    std::vector<double> present(weights.size(), NAN);
    std::vector<int64_t> read, completed;
    StepSections sections;
    sections.reads = [&](int64_t section) {
        read.push_back(section);
        elements(section, [&](size_t i) { present[i] = weights[i]; });
        model.set_weights(present);
    };
    sections.completes = [&](int64_t section) {
        completed.push_back(section);
        const std::vector<double> now = model.gradients();
        elements(section, [&](size_t i) { ASSERT_EQ(now[i], expected[i]) << section; });
    };
    model.forward_backward(ids, goals, 1.0, lowest, sections);
    EXPECT_EQ(model.gradients(), expected);
    EXPECT_EQ(read, (std::vector<int64_t>{0, 1, 2, 3, 4}));
    EXPECT_EQ(completed, (std::vector<int64_t>{4, 3, 2, 1, 0}));
}
INSTANTIATE_TEST_SUITE_P(TiedAndLowest, StepSectionsTest,
                         ::testing::Combine(::testing::Bool(),
                                            ::testing::Values<int64_t>(0, 1, 3)));

}  // namespace
}  // namespace lmo
