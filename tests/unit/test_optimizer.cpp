// Ten steps of every preset, from its JSON file to weights and states, against the NumPy twins of
// dev/reference/optimizers.py and lmo_family.py; and mixtures of stages that no preset has.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <ostream>

#include "llmc/io/safetensors.h"
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

// What the golden data of this optimizer was made for.
OptimizerConfig golden_config(const Case& c) {
    OptimizerConfig config;
    if (c.preset == "mixture") {
        config = mixture();
    } else if (c.preset == "mixture2") {
        config = config_of(
            {{"preset", "tests/data/optimizer_mixture2.json"}, {"weight_decay", kWeightDecay}});
    } else {
        config = preset(c.preset, kWeightDecay);
    }
    config.fuse_qkv = c.fused;
    config.clip_norm = c.fused || config.keeps_gradients() ? 0.0 : kClip;
    return config;
}

class AgainstReference : public testing::TestWithParam<Case> {
  protected:
    static bool samples() {
        return GetParam().preset == "drop-muon" || GetParam().preset == "mixture2";
    }

    std::vector<std::vector<double>> gradients(const OptimizerRun& run, int step) {
        std::vector<std::vector<double>> result;
        for (const Parameter& p : run.list) {
            std::vector<int64_t> shape = extents(p.shape);
            shape.insert(shape.begin(), kSteps);
            const std::vector<double> all = inputs_.read(p.name + ".gradients", shape);
            const auto begin = all.begin() + step * p.shape.count();
            result.emplace_back(begin, begin + p.shape.count());
        }
        return result;
    }

    void compare(OptimizerRun& run, const Tensor& tensor, const SafetensorsFile& golden,
                 const std::string& name, double bound) {
        const std::vector<double> expected = golden.read(name, extents(tensor.shape));
        const std::vector<double> actual = run.get(tensor);
        for (size_t i = 0; i < expected.size(); ++i) {
            EXPECT_NEAR(actual[i], expected[i], bound) << name << " element " << i;
            error_ = std::max(error_, std::fabs(actual[i] - expected[i]));
        }
    }

    const SafetensorsFile inputs_{samples() ? "tests/data/optimizer_layered_inputs.safetensors"
                                            : "tests/data/optimizer_inputs.safetensors"};
    double error_ = 0.0;
};

TEST_P(AgainstReference, TenSteps) {
    const Case& c = GetParam();
    const SafetensorsFile golden("tests/data/optimizer_" + c.preset + ".safetensors");
    const std::string name = c.fused ? "fused" : "split";
    // Single precision may err some times what NumPy's own single precision does: another order of
    // additions, and a maximum over few elements.
    const double error32 = golden.read(name + ".error32", {1})[0];
    const double bound = c.master == DType::f64 ? 1e-11 : 4.0 * error32;

    OptimizerRun run(golden_config(c), c.master, false,
                     samples() ? layered_parameters() : reference_parameters());
    std::vector<std::vector<double>> weights;
    for (const Parameter& p : run.list) weights.push_back(inputs_.read(p.name, extents(p.shape)));
    run.start(weights);
    const std::vector<double> rates = inputs_.read("rates", {kSteps});
    size_t compared = 0;
    for (int t = 0; t < kSteps; ++t) {
        run.add_gradients(gradients(run, t));
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
    RecordProperty("error", std::to_string(error_ / bound));
}

std::vector<Case> all_cases() {
    std::vector<std::string> names = kPresets;
    names.push_back("mixture");
    names.push_back("mixture2");
    std::vector<Case> cases;
    for (const std::string& name : names) {
        for (const bool fused : {true, false}) {
            for (const DType type : {DType::f64, DType::f32}) cases.push_back({name, fused, type});
        }
    }
    return cases;
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
    std::string name = info.param.preset;
    std::replace(name.begin(), name.end(), '-', '_');
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
        OptimizerConfig config = preset(name, 0.0);
        config.clip_norm = config.keeps_gradients() ? 0.0 : 1.0;
        for (GroupConfig& group : config.groups) {  // which pulls into the ball all the same
            if (group.decay.type == DecayType::constrained) group.decay.type = DecayType::none;
        }
        OptimizerRun run(config, DType::f32);
        std::vector<double> weights(run.list.buffer_length());
        for (size_t i = 0; i < weights.size(); ++i) weights[i] = 0.25 * (i % 9) - 1.0;
        run.set(run.weights.flat, weights);
        run.optimizer->initialise(run.weights);
        for (int t = 0; t < 3; ++t) EXPECT_EQ(run.step(0.1, t), 0.0) << name;
        EXPECT_EQ(run.get(run.weights.flat), weights) << name;
        for (const StateTensor& state : run.optimizer->states()) {
            if (state.name.ends_with(".start")) continue;
            for (const double value : run.get(state.tensor)) EXPECT_EQ(value, 0.0) << state.name;
        }
    }
}

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

// Same inputs, same bits; and a captured step, where steps repeat, replays to those of direct ones.
TEST(Presets, StepsRepeatBitForBitAndFromAGraph) {
    int captured = 0;
    for (const std::string& name : kPresets) {
        OptimizerConfig config = preset(name);
        config.clip_norm = config.keeps_gradients() ? 0.0 : 1.0;
        const ParameterList list = layered_parameters();
        OptimizerRun first(config, DType::f32, false, list),
            second(config, DType::f32, false, list);
        // Captured before anything ran, as the trainer does.
        std::unique_ptr<Graph> graph;
        if (second.optimizer->repeats()) {
            ++captured;
            graph = second.backend->capture([&second] {
                second.optimizer->step(second.weights, second.copies, second.gradients);
            });
        }
        for (int t = 0; t < kSteps; ++t) {
            std::vector<double> gradient(first.list.buffer_length());
            for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = std::sin(1.7 * i + t);
            for (OptimizerRun* run : {&first, &second}) run->set(run->gradients.flat, gradient);
            first.step(0.1 / (t + 1), t);
            second.optimizer->gradient_norm(second.gradients);
            second.optimizer->set_scalars(0.1 / (t + 1), t);
            if (graph) {
                graph->launch();
            } else {
                second.optimizer->step(second.weights, second.copies, second.gradients);
            }
        }
        EXPECT_EQ(first.get(first.weights.flat), second.get(second.weights.flat)) << name;
        for (const StateTensor& state : first.optimizer->states()) {
            EXPECT_EQ(first.get(state.tensor), second.get(second.state(state.name))) << state.name;
        }
    }
    // All but drop-muon, lionmuon and those whose momentum changes with the updates.
    EXPECT_EQ(captured, static_cast<int>(kPresets.size()) - 4);
}

}  // namespace
}  // namespace lmo
