// How parameters find their group, what states exist, clipping, the copies, the plan, and kappa.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "llmc/core/error.h"
#include "llmc/model/llama.h"
#include "tests/unit/optimizer_run.h"

namespace lmo {
namespace {

const std::string kLayer = "model.layers.0.";

// Expects a UsageError on construction whose text has all the parts.
void expect_rejected(const OptimizerConfig& config, const std::vector<std::string>& parts) {
    try {
        OptimizerRun run(config, DType::f32);
        FAIL() << "accepted, expected a message with \"" << parts[0] << "\"";
    } catch (const UsageError& error) {
        const std::string text = error.what();
        for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << text;
    }
}

TEST(GroupMatch, RolesAndNames) {
    const Parameter q{"model.layers.11.self_attn.q_proj.weight", {4, 4}, Role::matrix, "", 0.02};
    const auto by_name = [&](const char* name) { return GroupMatch{{}, name}.matches(q); };
    EXPECT_TRUE(GroupMatch{}.matches(q));
    EXPECT_TRUE(role_is(Role::matrix).matches(q));
    EXPECT_FALSE(role_is(Role::head).matches(q));
    EXPECT_TRUE((GroupMatch{Role::matrix, "*q_proj*"}.matches(q)));
    EXPECT_FALSE((GroupMatch{Role::gain, "*q_proj*"}.matches(q)));
    EXPECT_FALSE((GroupMatch{Role::matrix, "*k_proj*"}.matches(q)));
    for (const char* yes : {"*", "model.*", "*.weight", "*.?_proj.*", "model.layers.??.*",
                            "*layers*attn*t", "model.layers.11.self_attn.q_proj.weight", "**"}) {
        EXPECT_TRUE(by_name(yes)) << yes;
    }
    for (const char* no : {"model", "*.bias", "model.layers.?.*", "odel*", "?", "*weight?",
                           "model.layers.11.self_attn.q_proj.weight.", "[m]*"}) {
        EXPECT_FALSE(by_name(no)) << no;
    }
}

TEST(Radius, Rules) {
    const Shape tall{32, 8}, wide{8, 32}, vector{16};
    const auto value = [](RadiusRule rule, const Shape& shape) {
        return RadiusConfig{rule, 3.0}.value(shape);
    };
    EXPECT_EQ(value(RadiusRule::one, tall), 3.0);
    EXPECT_EQ(value(RadiusRule::sqrt_max_1_ratio, tall), 6.0);
    EXPECT_EQ(value(RadiusRule::sqrt_max_1_ratio, wide), 3.0);
    EXPECT_EQ(value(RadiusRule::sqrt_ratio, tall), 6.0);
    EXPECT_EQ(value(RadiusRule::sqrt_ratio, wide), 1.5);
    EXPECT_EQ(value(RadiusRule::sqrt_max, tall), 3.0 * std::sqrt(32.0));
    EXPECT_EQ(value(RadiusRule::sqrt_max, wide), 3.0 * std::sqrt(32.0));
    EXPECT_EQ(value(RadiusRule::sqrt_ratio, vector), 12.0);
}

TEST(OptimizerGroups, Mistakes) {
    OptimizerConfig no_rest = muon_like();
    no_rest.groups.pop_back();
    expect_rejected(no_rest,
                    {"no group matches", "model.embed_tokens.weight", "role embedding", "\"any\""});

    OptimizerConfig misspelt = muon_like();
    misspelt.groups.insert(misspelt.groups.begin(), misspelt.groups[0]);
    misspelt.groups[0].match = {std::nullopt, "*.qproj.*"};
    expect_rejected(misspelt, {"optimizer.groups[0]", "*.qproj.*", "takes no parameter"});

    OptimizerConfig spectral_gain = muon_like();
    spectral_gain.groups[0].match = {};
    spectral_gain.groups.pop_back();
    expect_rejected(spectral_gain, {"optimizer.groups[0]", kLayer + "input_layernorm.weight", "[8]",
                                    "spectral", "matrix"});

    OptimizerConfig torn = muon_like();
    torn.groups.insert(torn.groups.begin(), torn.groups[0]);
    torn.groups[0].match = {Role::matrix, "*.k_proj.*"};
    expect_rejected(
        torn, {"q_proj", "k_proj", "optimizer.groups[0]", "optimizer.groups[1]", "optimizer.qkv"});
    torn.fuse_qkv = false;
    EXPECT_NO_THROW(OptimizerRun(torn, DType::f32));
}

TEST(OptimizerGroups, TheFirstMatchTakesTheParameter) {
    GroupConfig all, gains;
    gains.match = role_is(Role::gain);
    gains.lr_scale = 10.0;
    OptimizerConfig config;
    config.groups = {gains, all};
    OptimizerRun run(config, DType::f64);
    run.set(run.gradients.flat, std::vector<double>(run.list.buffer_length(), 1.0));
    run.step(0.5, 0);
    for (int i = 0; i < run.list.size(); ++i) {
        const double expected = run.list[i].role == Role::gain ? -5.0 : -0.5;
        for (const double w : run.get(run.weights[i])) EXPECT_EQ(w, expected) << run.list[i].name;
    }
}

TEST(OptimizerStates, NamesShapesAndZeros) {
    OptimizerRun run(muon_like(), DType::f32);
    std::set<std::string> names;
    for (const StateTensor& state : run.optimizer->states()) {
        EXPECT_TRUE(names.insert(state.name).second) << state.name << " twice";
        const size_t dot = state.name.rfind('.');
        const int index = run.list.find(state.name.substr(0, dot));
        ASSERT_GE(index, 0) << state.name;
        EXPECT_EQ(state.tensor.shape, run.list[index].shape) << state.name;
        EXPECT_EQ(state.tensor.dtype, DType::f32);
        run.set(state.tensor, std::vector<double>(state.tensor.count(), NAN));
    }
    run.optimizer->initialise(run.weights);
    for (const StateTensor& state : run.optimizer->states()) {
        for (const double value : run.get(state.tensor)) EXPECT_EQ(value, 0.0) << state.name;
    }
    EXPECT_EQ(names.size(), 7u + 2u * 3u);  // seven matrices, Adam on three others
    EXPECT_TRUE(names.count(kLayer + "self_attn.v_proj.weight.momentum"));
    EXPECT_TRUE(names.count("lm_head.weight.first") && names.count("lm_head.weight.second"));
    // q, k, v are rows of one state.
    const auto data = [&](const char* p) {
        return run.state(kLayer + "self_attn." + p + "_proj.weight.momentum").as<float>();
    };
    EXPECT_EQ(data("k"), data("q") + 36);
    EXPECT_EQ(data("v"), data("k") + 12);
}

TEST(OptimizerStates, PlanEqualsRun) {
    OptimizerConfig config = muon_like();
    OptimizerRun run(config, DType::f32);
    run.step(0.1, 0);  // takes the workspace
    Arena plan;
    plan.take("weights", DType::f32, {run.list.buffer_length()});
    plan.take("gradients", DType::f32, {run.list.buffer_length()});
    const Optimizer planned(*run.backend, plan, config, run.list, DType::f32);
    plan.workspace();
    EXPECT_EQ(plan.parts(), run.arena.parts());
    ASSERT_EQ(planned.states().size(), run.optimizer->states().size());
    for (size_t i = 0; i < planned.states().size(); ++i) {
        EXPECT_EQ(planned.states()[i].name, run.optimizer->states()[i].name);
        EXPECT_TRUE(planned.states()[i].tensor.empty());
    }
}

TEST(Clipping, GlobalNormBeforeMomentum) {
    GroupConfig all;
    OptimizerConfig config;
    config.groups = {all};
    config.clip_norm = 2.0;
    OptimizerRun run(config, DType::f64);
    for (const double size : {1.0, 100.0}) {
        run.backend->zero(run.weights.flat);
        run.backend->zero(run.gradients.flat);
        run.set(run.gradients[1], {0.3 * size, 0, 0, 0, 0, 0, 0, 0});
        run.set(run.gradients[6], std::vector<double>(24, 0.4 * size / std::sqrt(24.0)));
        const double norm = run.step(1.0, 0);
        EXPECT_NEAR(norm, 0.5 * size, 1e-12 * size);
        const double factor = size > 1.0 ? 2.0 / (50.0 + 1e-6) : 1.0;
        EXPECT_NEAR(run.get(run.weights[1])[0], -0.3 * size * factor, 1e-12);
    }
}

// optimizer.compat.momentum_init: as the published normalized SGD, whose state is cloned from the
// weights after their first decay.
TEST(MomentumStart, IsTheDecayedWeights) {
    GroupConfig nesterov, lion;
    nesterov.match = role_is(Role::matrix);
    nesterov.momentum = {MomentumType::nesterov, 0.95};
    nesterov.norm.type = NormType::frobenius;
    nesterov.decay.type = DecayType::decoupled;
    nesterov.lr_scale = 2.0;
    lion.momentum = {MomentumType::lion, 0.0, 0.9, 0.99};
    OptimizerConfig config;
    config.groups = {nesterov, lion};
    config.weight_decay = 0.1;
    for (const DType master : {DType::f32, DType::f64}) {
        OptimizerRun run(config, master);
        std::vector<double> values(static_cast<size_t>(run.list.buffer_length()));
        for (size_t i = 0; i < values.size(); ++i) values[i] = 0.37 * static_cast<double>(i) - 3.0;
        run.set(run.weights.flat, values);
        run.optimizer->start_momentum_from(run.weights, 0.3);
        int from_weights = 0;
        for (const StateTensor& state : run.optimizer->states()) {
            const std::string name = state.name.substr(0, state.name.rfind('.'));
            const std::vector<double> momentum = run.get(state.tensor);
            int i = 0;
            while (run.list[i].name != name) ++i;
            const std::vector<double> weights = run.get(run.weights[i]);
            const bool matrix = run.list[i].role == Role::matrix;
            from_weights += matrix;
            for (size_t k = 0; k < momentum.size(); ++k) {
                const double factor = 1.0 - 0.3 * 2.0 * 0.1;
                const float narrow = static_cast<float>(factor) * static_cast<float>(weights[k]);
                const double start = master == DType::f32 ? narrow : factor * weights[k];
                EXPECT_EQ(momentum[k], matrix ? start : 0.0);
            }
        }
        EXPECT_EQ(from_weights, 7);
    }
}

TEST(Copies, AreTheRoundedWeights) {
    OptimizerRun run(muon_like(), DType::f32, true);
    std::vector<double> gradient(run.list.buffer_length());
    for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = std::cos(0.3 * i * i);
    run.set(run.gradients.flat, gradient);
    run.step(0.7, 0);
    for (int i = 0; i < run.list.size(); ++i) {
        std::vector<uint16_t> copies(run.list[i].shape.count());
        run.backend->copy_out(copies.data(), run.copies[i]);
        const std::vector<double> weights = run.get(run.weights[i]);
        for (size_t j = 0; j < copies.size(); ++j) {
            EXPECT_NE(weights[j], 0.0);
            EXPECT_EQ(copies[j], float_to_bf16(static_cast<float>(weights[j])));
        }
    }
}

LlamaConfig llama(int64_t layers, bool tied) {
    LlamaConfig config;
    config.n_layer = layers;
    config.n_head = config.n_kv_head = 12;
    config.d_model = 768;
    config.d_ff = 2048;
    config.vocab_size = 50304;
    config.seq_len = 512;
    config.tie_embeddings = tied;
    return config;
}

// The published values of the 124M and 210M models (arXiv 2602.05813, its official code).
TEST(WarmupKappa, PublishedModels) {
    OptimizerConfig muon = muon_like(), sign, frobenius, adam;
    sign.groups.resize(1);
    sign.groups[0].norm.type = NormType::sign;
    frobenius.groups.resize(1);
    frobenius.groups[0].norm.type = NormType::frobenius;
    adam.groups = {muon.groups[1]};
    muon.fuse_qkv = false;  // kappa counts q, k, v as one matrix all the same
    const ParameterList small = llama_parameters(llama(12, true));
    const ParameterList large = llama_parameters(llama(24, true));
    EXPECT_EQ(warmup_kappa(muon, small), 46848.0);
    EXPECT_EQ(warmup_kappa(muon, large), 92928.0);
    EXPECT_EQ(warmup_kappa(sign, small), 123568128.0);
    EXPECT_EQ(warmup_kappa(sign, large), 208502784.0);
    EXPECT_EQ(warmup_kappa(adam, small), 123568128.0);
    EXPECT_EQ(warmup_kappa(frobenius, small), 61.0);
    EXPECT_EQ(warmup_kappa(frobenius, large), 121.0);
    // An untied head is one more matrix.
    const ParameterList untied = llama_parameters(llama(12, false));
    EXPECT_EQ(warmup_kappa(frobenius, untied), 62.0);
    EXPECT_EQ(warmup_kappa(muon, untied), 46848.0 + 768.0);
}

}  // namespace
}  // namespace lmo
