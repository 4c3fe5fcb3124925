// Who owns what, and that optimizers of owned slices together do what one of everything does.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

#include "llmc/train/sharding.h"
#include "tests/unit/optimizer_run.h"

namespace lmo {
namespace {

// Matrices above and below what is cut, of sizes that nothing divides; q, k, v are one of 64 rows.
ParameterList parameters_to_cut() {
    const std::string layer = "model.layers.0.", qkv = layer + "self_attn.qkv";
    ParameterList list;
    list.add({"model.embed_tokens.weight", {173, 37}, Role::embedding, "", 0.02});
    list.add({layer + "input_layernorm.weight", {5000}, Role::gain, "", 0.0});
    list.add({layer + "self_attn.q_proj.weight", {101, 48}, Role::matrix, qkv, 0.02});
    list.add({layer + "self_attn.k_proj.weight", {13, 48}, Role::matrix, qkv, 0.02});
    list.add({layer + "self_attn.v_proj.weight", {13, 48}, Role::matrix, qkv, 0.02});
    list.add({layer + "self_attn.o_proj.weight", {20, 20}, Role::matrix, "", 0.02});
    list.add({layer + "mlp.gate_proj.weight", {47, 67}, Role::matrix, "", 0.02});
    Parameter up{layer + "mlp.up_proj.weight", {47, 67}, Role::matrix, "", 0.02};
    up.adjacent = true;  // begins where nothing is aligned
    list.add(up);
    list.add({"lm_head.weight", {129, 33}, Role::head, "", 0.02});
    return list;
}

GroupConfig lion_group() {
    GroupConfig group;
    group.momentum = {MomentumType::lion, 0.0, 0.9, 0.99};
    group.norm = {NormType::sign, {}};
    return group;
}

OptimizerConfig only(const GroupConfig& group) {
    OptimizerConfig config;
    config.groups = {group};
    return config;
}

std::map<std::string, int64_t> units_of(const OptimizerConfig& config) {
    const ParameterList list = parameters_to_cut();
    const std::vector<ParameterBlock> blocks = list.blocks(config.fuse_qkv);
    const std::vector<int64_t> units = update_units(config, list);
    std::map<std::string, int64_t> result;
    for (size_t i = 0; i < blocks.size(); ++i) result[blocks[i].name] = units[i];
    return result;
}

TEST(Sharding, WhatMayBeCut) {
    const std::string embedding = "model.embed_tokens.weight";
    const int64_t all = 173 * 37;
    GroupConfig group = lion_group();
    const auto unit = [&](const GroupConfig& g) { return units_of(only(g)).at(embedding); };
    EXPECT_EQ(unit(group), 1);
    EXPECT_EQ(units_of(only(group)).at("model.layers.0.self_attn.qkv"), 1);
    group.norm.type = NormType::none;
    group.momentum.type = MomentumType::adam;
    EXPECT_EQ(unit(group), 1);
    group.decay.type = DecayType::start;
    EXPECT_EQ(unit(group), 1);
    group.norm.type = NormType::row;
    EXPECT_EQ(unit(group), 37);
    for (const NormType type : {NormType::frobenius, NormType::rms, NormType::column}) {
        group.norm.type = type;
        EXPECT_EQ(unit(group), all);
    }
    group = lion_group();
    group.momentum.type = MomentumType::gradient;
    EXPECT_EQ(unit(group), all);
    group = lion_group();
    group.post.type = PostType::frobenius;
    EXPECT_EQ(unit(group), all);
    group = lion_group();
    group.step.rule = StepRule::dual;
    EXPECT_EQ(unit(group), all);
    group = lion_group();
    group.alternate = AlternateConfig{2, {NormType::row, {}}, {}, 1.0, 0.0};
    EXPECT_EQ(unit(group), 37);
    group.alternate->stable_rank = 1.0;
    EXPECT_EQ(unit(group), all);
    group = lion_group();
    group.alternate =
        AlternateConfig{2, {NormType::spectral, newton_schulz_set("jordan", 5)}, {}, 1.0, 0.0};
    EXPECT_EQ(unit(group), all);
    EXPECT_EQ(units_of(muon_like()).at("model.layers.0.self_attn.o_proj.weight"), 400);
}

// Every element has one owner; slices are even, and cut where that may be.
void expect_sound(const OptimizerConfig& config, int ranks, CutBlocks cut) {
    const ParameterList list = parameters_to_cut();
    const Sharding sharding(config, list, ranks, cut);
    std::vector<int> owner(static_cast<size_t>(list.buffer_length()), -1);
    int64_t elements = 0;
    for (const Piece& piece : sharding.pieces) {
        for (int64_t i = piece.offset; i < piece.offset + piece.count; ++i) {
            EXPECT_EQ(owner[static_cast<size_t>(i)], -1);
            owner[static_cast<size_t>(i)] = piece.owner;
        }
        elements += piece.count;
    }
    EXPECT_EQ(elements, list.count());
    for (int p = 0; p < list.size(); ++p) {
        for (int rank = 0; rank < ranks; ++rank) {
            const Slice part = sharding.part(p, rank);
            for (int64_t i = 0; i < list[p].shape.count(); ++i) {
                const bool here = i >= part.begin && i < part.begin + part.count;
                ASSERT_EQ(here, owner[static_cast<size_t>(list.offset(p) + i)] == rank);
            }
        }
    }
    const std::vector<int64_t> units = update_units(config, list);
    const std::vector<ParameterBlock> blocks = list.blocks(config.fuse_qkv);
    for (size_t b = 0; b < blocks.size(); ++b) {
        const int64_t count = blocks[b].shape.count();
        const int64_t unit = cut == CutBlocks::all ? 1 : units[b];
        const bool is_cut = cut != CutBlocks::none && ranks > 1 && blocks[b].shape.rank() == 2 &&
                            count / ranks >= kSmallestSlice && (count + unit - 1) / unit >= ranks;
        for (int rank = 0; rank < ranks; ++rank) {
            const Slice own = sharding.owned_by(rank)(blocks[b]);
            if (!is_cut) {
                EXPECT_TRUE(own.count == 0 || own.is_all(blocks[b].shape)) << blocks[b].name;
                continue;
            }
            const int64_t even = unit == 1 ? 64 : unit;
            EXPECT_EQ(own.begin % even, 0) << blocks[b].name;
            EXPECT_LE(std::abs(own.count - count / ranks), even) << blocks[b].name;
        }
    }
}

TEST(Sharding, EveryElementHasOneOwner) {
    GroupConfig rows = lion_group();
    rows.norm.type = NormType::row;
    for (const int ranks : {1, 2, 3, 4, 7, 16, 300}) {
        for (const CutBlocks cut : {CutBlocks::none, CutBlocks::by_update, CutBlocks::all}) {
            for (const auto& config : {muon_like(), only(lion_group()), only(rows)}) {
                expect_sound(config, ranks, cut);
            }
        }
    }
}

TEST(Sharding, SharesAreEvenWhereBlocksAreCut) {
    const ParameterList list = parameters_to_cut();
    const Sharding lion(only(lion_group()), list, 3, CutBlocks::by_update);
    EXPECT_EQ(lion.shares[0].slices, 5);  // all matrices but o
    for (const Sharding::Share& share : lion.shares) {
        EXPECT_EQ(share.slices, 5);
        EXPECT_NEAR(static_cast<double>(share.elements), list.count() / 3.0, 5000.0);
    }
    EXPECT_EQ(lion.describe().substr(0, 33), "1/3 of 5 blocks and 0 to 1 others");
    const Sharding whole(only(lion_group()), list, 3, CutBlocks::none);
    EXPECT_EQ(whole.shares[0].slices, 0);
    EXPECT_EQ(whole.describe().find("1/3"), std::string::npos);
    EXPECT_EQ(whole.owner(0), whole.parts[0][0].owner);
}

std::vector<std::vector<double>> random_values(const ParameterList& list, std::mt19937& random) {
    std::normal_distribution<double> normal;
    std::vector<std::vector<double>> values;
    for (const Parameter& p : list) {
        values.emplace_back(static_cast<size_t>(p.shape.count()));
        for (double& value : values.back()) value = normal(random);
    }
    return values;
}

// The state of all ranks as a checkpoint joins it.
std::map<std::string, std::vector<double>> joined(
    const std::vector<std::unique_ptr<OptimizerRun>>& ranks) {
    std::map<std::string, std::vector<double>> all;
    for (const auto& run : ranks) {
        for (const StateTensor& state : run->optimizer->states()) {
            std::vector<double>& values = all[state.name];
            values.resize(static_cast<size_t>(state.whole.count()), std::nan(""));
            const std::vector<double> own = run->get(state.tensor);
            std::copy(own.begin(), own.end(), values.begin() + state.begin);
        }
    }
    return all;
}

// `ranks` optimizers, each of what it owns, whose weights are shared after every step.
void expect_the_same(const OptimizerConfig& config, int ranks, DType master,
                     const std::string& name) {
    const ParameterList list = parameters_to_cut();
    const Sharding sharding(config, list, ranks, CutBlocks::by_update);
    OptimizerRun whole(config, master, true, list);
    std::vector<std::unique_ptr<OptimizerRun>> parts;
    for (int r = 0; r < ranks; ++r) {
        parts.push_back(std::make_unique<OptimizerRun>(config, master, true, list,
                                                       make_cpu_backend(1), sharding.owned_by(r)));
    }
    std::mt19937 random(3);
    const auto start = random_values(list, random);
    whole.start(start);
    for (const auto& run : parts) run->start(start);
    for (int64_t k = 0; k < 3; ++k) {
        const auto gradients = random_values(list, random);
        whole.add_gradients(gradients);
        const double norm = whole.step(0.01, k);
        std::vector<double> sums(static_cast<size_t>(list.size()), 0.0);
        for (const auto& run : parts) {
            run->add_gradients(gradients);
            run->optimizer->gradient_norm(run->gradients, [&](std::vector<double>& own) {
                for (size_t i = 0; i < own.size(); ++i) sums[i] += own[i];
            });
        }
        for (const auto& run : parts) {
            const auto complete = [&](std::vector<double>& own) { own = sums; };
            EXPECT_NEAR(run->optimizer->gradient_norm(run->gradients, complete), norm,
                        1e-12 * norm);
            run->optimizer->set_scalars(0.01, k);
            run->optimizer->step(run->weights, run->copies, run->gradients);
        }
        for (const auto& to : parts) {
            for (const Piece& piece : sharding.pieces) {
                const auto& from = parts[static_cast<size_t>(piece.owner)];
                for (const auto buffer : {&OptimizerRun::weights, &OptimizerRun::copies}) {
                    to->backend->copy(((*to).*buffer).flat.slice(piece.offset, {piece.count}),
                                      ((*from).*buffer).flat.slice(piece.offset, {piece.count}));
                }
            }
            EXPECT_EQ(to->all_weights(), whole.all_weights()) << name << ", update " << k;
        }
    }
    const auto states = joined(parts);
    for (const StateTensor& state : whole.optimizer->states()) {
        EXPECT_EQ(states.at(state.name), whole.get(state.tensor)) << name << ": " << state.name;
    }
}

TEST(Sharding, OptimizersOfSlicesAreOneOptimizer) {
    for (const std::string& name : kPresets) {
        expect_the_same(preset(name), 3, DType::f32, name);
    }
    for (const std::string name : {"adamw", "lion"}) {
        for (const int ranks : {2, 4, 16}) expect_the_same(preset(name), ranks, DType::f64, name);
    }
}

TEST(Sharding, RowsAndTwoDirections) {
    GroupConfig rows = lion_group();
    rows.norm.type = NormType::row;
    rows.radius.rule = RadiusRule::sqrt_ratio;
    rows.decay = {DecayType::cautious, 0.1, {Role::matrix, Role::head, Role::embedding}};
    expect_the_same(only(rows), 3, DType::f32, "rows");
    rows.alternate = AlternateConfig{2, {NormType::sign, {}}, {}, 0.5, 0.0};
    rows.decay.type = DecayType::start;
    expect_the_same(only(rows), 2, DType::f32, "two directions");
}

}  // namespace
}  // namespace lmo
