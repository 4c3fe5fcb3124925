// Ten steps of every preset, from its JSON file to weights and states, against the NumPy twins of
// dev/reference/optimizers.py; and a mixture of stages that no preset has.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <ostream>

#include "llmc/io/safetensors.h"
#include "llmc/train/config.h"
#include "tests/unit/optimizer_run.h"

namespace lmo {
namespace {

constexpr int kSteps = 10;
constexpr double kWeightDecay = 0.1, kClip = 3.0;  // as in the reference

std::vector<int64_t> extents(const Shape& shape) {
    std::vector<int64_t> result;
    for (int axis = 0; axis < shape.rank(); ++axis) result.push_back(shape[axis]);
    return result;
}

// A preset as users get it: through the configuration.
OptimizerConfig preset(const std::string& name) {
    const std::string path = "configs/optimizer/" + name + ".json";
    const nlohmann::ordered_json json = {
        {"model",
         {{"n_layer", 1},
          {"n_head", 1},
          {"d_model", 8},
          {"d_ff", 8},
          {"vocab_size", 8},
          {"seq_len", 8}}},
        {"batch", {{"sequences", 1}}},
        {"optimizer", {{"preset", path}, {"lr", 0.02}, {"weight_decay", kWeightDecay}}}};
    return config_from_json(json, "test", ConfigUse::schedule).optimizer;
}

// Every radius rule, ema and heavy ball, plain gradients, a group by name before its role's group,
// decay of its own and of other roles.
OptimizerConfig mixture() {
    GroupConfig down, matrices, table, head, gains;
    down.match.name = "*.mlp.down_*";
    down.lr_scale = 0.1;
    matrices.match = role_is(Role::matrix);
    matrices.momentum = {MomentumType::ema, 0.9};
    matrices.norm = {NormType::spectral, newton_schulz_set("polar-express", 6)};
    matrices.radius = {RadiusRule::sqrt_ratio, 0.5};
    matrices.decay = {DecayType::decoupled, 0.02};
    matrices.lr_scale = 2.0;
    table.match = role_is(Role::embedding);
    table.norm.type = NormType::sign;
    table.radius.factor = 3.0;
    table.decay = {DecayType::decoupled, 0.3, {Role::embedding}};
    table.lr_scale = 0.5;
    head.match = role_is(Role::head);
    head.momentum = {MomentumType::lion, 0.0, 0.8, 0.95};
    head.norm.type = NormType::sign;
    gains.match = role_is(Role::gain);
    gains.momentum = {MomentumType::heavy_ball, 0.7};
    gains.norm.type = NormType::frobenius;
    gains.decay = {DecayType::decoupled, {}};  // but a gain is none of the roles that decay
    OptimizerConfig config;
    config.weight_decay = kWeightDecay;
    config.groups = {down, matrices, table, head, gains};
    return config;
}

struct Case {
    std::string preset;
    bool fused;
    DType master;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.preset; }

class AgainstReference : public testing::TestWithParam<Case> {
  protected:
    void load_gradients(OptimizerRun& run, int step) {
        for (int i = 0; i < run.list.size(); ++i) {
            const Parameter& p = run.list[i];
            std::vector<int64_t> shape = extents(p.shape);
            shape.insert(shape.begin(), kSteps);
            const std::vector<double> all = inputs_.read(p.name + ".gradients", shape);
            const auto begin = all.begin() + step * p.shape.count();
            run.set(run.gradients[i], {begin, begin + p.shape.count()});
        }
    }

    void compare(OptimizerRun& run, const Tensor& tensor, const SafetensorsFile& golden,
                 const std::string& name, double bound) {
        const std::vector<double> expected = golden.read(name, extents(tensor.shape));
        const std::vector<double> actual = run.get(tensor);
        for (size_t i = 0; i < expected.size(); ++i) {
            EXPECT_NEAR(actual[i], expected[i], bound) << name << " element " << i;
        }
    }

    const SafetensorsFile inputs_{"tests/data/optimizer_inputs.safetensors"};
};

TEST_P(AgainstReference, TenSteps) {
    const Case& c = GetParam();
    OptimizerConfig config = c.preset == "mixture" ? mixture() : preset(c.preset);
    config.fuse_qkv = c.fused;
    config.clip_norm = c.fused ? 0.0 : kClip;
    const SafetensorsFile golden("tests/data/optimizer_" + c.preset + ".safetensors");
    const std::string name = c.fused ? "fused" : "split";
    // Single precision may err some times what NumPy's own single precision does: another order of
    // additions, and a maximum over few elements.
    const double error32 = golden.read(name + ".error32", {1})[0];
    const double bound = c.master == DType::f64 ? 1e-11 : 4.0 * error32;

    OptimizerRun run(config, c.master);
    for (int i = 0; i < run.list.size(); ++i) {
        run.set(run.weights[i], inputs_.read(run.list[i].name, extents(run.list[i].shape)));
    }
    const std::vector<double> rates = inputs_.read("rates", {kSteps});
    size_t compared = 0;
    for (int t = 0; t < kSteps; ++t) {
        load_gradients(run, t);
        run.step(rates[t], t);
        const std::string prefix = name + "." + std::to_string(t + 1) + ".";
        if (!golden.find(prefix + run.list[0].name)) continue;
        for (int i = 0; i < run.list.size(); ++i) {
            compare(run, run.weights[i], golden, prefix + run.list[i].name, bound);
        }
        for (const StateTensor& state : run.optimizer->states()) {
            compare(run, state.tensor, golden, prefix + state.name, bound);
        }
        compared += run.list.size() + run.optimizer->states().size();
    }
    // No state of the reference is left over: both cases hold the same tensors and one error.
    EXPECT_EQ(2 * (compared + 1), golden.entries().size());
}

const std::vector<std::string> kPresets = {"adamw", "muon", "muon-kj", "lion", "signum", "nsgd"};

std::vector<Case> all_cases() {
    std::vector<std::string> names = kPresets;
    names.push_back("mixture");
    std::vector<Case> cases;
    for (const std::string& name : names) {
        for (const bool fused : {true, false}) {
            for (const DType type : {DType::f64, DType::f32}) cases.push_back({name, fused, type});
        }
    }
    return cases;
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
    std::string name = info.param.preset == "muon-kj" ? "muon_kj" : info.param.preset;
    return name + (info.param.fused ? "_fused_" : "_split_") + to_string(info.param.master);
}

INSTANTIATE_TEST_SUITE_P(Presets, AgainstReference, testing::ValuesIn(all_cases()), case_name);

TEST(Presets, EveryFileIsTested) {
    size_t files = 0;
    for (const auto& entry : std::filesystem::directory_iterator("configs/optimizer")) {
        const std::string name = entry.path().stem().string();
        EXPECT_EQ(std::count(kPresets.begin(), kPresets.end(), name), 1) << name;
        ++files;
    }
    EXPECT_EQ(files, kPresets.size());
}

// A gradient of zero moves no weight, with or without clipping, and makes no NaN.
TEST(Presets, ZeroGradientIsNoUpdate) {
    for (const std::string& name : kPresets) {
        OptimizerConfig config = preset(name);
        config.weight_decay = 0.0;
        config.clip_norm = 1.0;
        OptimizerRun run(config, DType::f32);
        std::vector<double> weights(run.list.buffer_length());
        for (size_t i = 0; i < weights.size(); ++i) weights[i] = 0.25 * (i % 9) - 1.0;
        run.set(run.weights.flat, weights);
        for (int t = 0; t < 2; ++t) EXPECT_EQ(run.step(0.1, t), 0.0) << name;
        EXPECT_EQ(run.get(run.weights.flat), weights) << name;
        for (const StateTensor& state : run.optimizer->states()) {
            for (const double value : run.get(state.tensor)) EXPECT_EQ(value, 0.0) << state.name;
        }
    }
}

// Same inputs, same bits; and a captured step replays to the bits of direct ones.
TEST(Presets, GradientNormsOfEveryTensor) {
    OptimizerRun run(muon_like(), DType::f64);
    double squares = 0.0;
    for (int i = 0; i < run.list.size(); ++i) {
        const size_t count = static_cast<size_t>(run.list[i].shape.count());
        run.set(run.gradients[i], std::vector<double>(count, i + 1.0));
        squares += static_cast<double>(count) * (i + 1.0) * (i + 1.0);
    }
    EXPECT_DOUBLE_EQ(run.optimizer->gradient_norm(run.gradients), std::sqrt(squares));
    const std::vector<double>& norms = run.optimizer->gradient_norms();
    ASSERT_EQ(static_cast<int>(norms.size()), run.list.size());
    for (int i = 0; i < run.list.size(); ++i) {
        const double count = static_cast<double>(run.list[i].shape.count());
        EXPECT_DOUBLE_EQ(norms[static_cast<size_t>(i)], (i + 1.0) * std::sqrt(count));
    }
}

TEST(Presets, StepsRepeatBitForBitAndFromAGraph) {
    for (const char* name : {"adamw", "muon", "nsgd"}) {
        OptimizerConfig config = preset(name);
        config.clip_norm = 1.0;
        OptimizerRun first(config, DType::f32), second(config, DType::f32);
        // Captured before anything ran, as the trainer does.
        const std::unique_ptr<Graph> graph = second.backend->capture(
            [&second] { second.optimizer->step(second.weights, second.copies, second.gradients); });
        for (int t = 0; t < kSteps; ++t) {
            std::vector<double> gradient(first.list.buffer_length());
            for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = std::sin(1.7 * i + t);
            for (OptimizerRun* run : {&first, &second}) run->set(run->gradients.flat, gradient);
            first.step(0.1 / (t + 1), t);
            second.optimizer->gradient_norm(second.gradients);
            second.optimizer->set_scalars(0.1 / (t + 1), t);
            graph->launch();
        }
        EXPECT_EQ(first.get(first.weights.flat), second.get(second.weights.flat)) << name;
        for (const StateTensor& state : first.optimizer->states()) {
            EXPECT_EQ(first.get(state.tensor), second.get(second.state(state.name))) << state.name;
        }
    }
}

}  // namespace
}  // namespace lmo
