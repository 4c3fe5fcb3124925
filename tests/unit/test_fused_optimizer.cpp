// Updates in one pass are those of the stages one after another, preset by preset.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "llmc/device/timed_backend.h"
#include "tests/unit/optimizer_run.h"

namespace lmo {
namespace {

struct OwnedBackend {
    std::unique_ptr<Backend> inner = make_cpu_backend(1);
};

// Takes each fused update apart.
class ChainBackend : OwnedBackend, public TimedBackend {
  public:
    ChainBackend() : TimedBackend(*inner) {}

    int64_t fused_updates = 0;

    void fused_update(const FusedUpdate& op) override {
        ++fused_updates;
        if (const Adam* adam = std::get_if<Adam>(&op.momentum)) {
            this->adam(*adam);
        } else {
            momentum(std::get<Momentum>(op.momentum));
        }
        const std::span<const Tensor> x = op.gradients();
        if (op.direction.type == FusedDirection::Type::sign) sign({x});
        if (op.direction.type == FusedDirection::Type::frobenius) {
            frobenius_normalize({x, op.direction.eps, op.workspace});
        }
        Apply apply = op.apply;
        apply.x = x;
        this->apply(apply);
    }
};

// Ten updates of one seed; the bits of all weights, copies and states.
std::vector<double> result_of(OptimizerRun& run) {
    std::vector<double> weights(static_cast<size_t>(run.list.buffer_length()));
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = 0.25 * std::cos(0.7 * i);
    run.set(run.weights.flat, weights);
    run.optimizer->initialise(run.weights);
    take_steps(run);
    std::vector<double> all = run.all_weights();
    const auto append = [&](const std::vector<double>& values) {
        all.insert(all.end(), values.begin(), values.end());
    };
    for (const StateTensor& state : run.optimizer->states()) append(run.get(state.tensor));
    for (int i = 0; !run.copies.flat.empty() && i < run.list.size(); ++i) {
        std::vector<uint16_t> bits(static_cast<size_t>(run.list[i].shape.count()));
        run.backend->copy_out(bits.data(), run.copies[i]);
        append({bits.begin(), bits.end()});
    }
    return all;
}

// Fused updates that a run of these types took.
int64_t expect_equal(const OptimizerConfig& config, DType master, bool copies) {
    OptimizerRun fused(config, master, copies, layered_parameters());
    auto chain_backend = std::make_unique<ChainBackend>();
    const ChainBackend& counted = *chain_backend;
    OptimizerRun chain(config, master, copies, layered_parameters(), std::move(chain_backend));
    EXPECT_EQ(result_of(fused), result_of(chain));
    return counted.fused_updates;
}

TEST(FusedOptimizer, EveryPresetIsItsStagesBitForBit) {
    for (const std::string& name : kPresets) {
        SCOPED_TRACE(name);
        OptimizerConfig config = preset(name);
        config.clip_norm = config.keeps_gradients() ? 0.0 : 1.0;
        const int64_t fused = expect_equal(config, DType::f64, false);
        EXPECT_EQ(expect_equal(config, DType::f32, false), fused);
        EXPECT_EQ(expect_equal(config, DType::f32, true), fused);
        // Pulled to the start; steps of other lengths; momentum in the gradients.
        const std::set<std::string> never = {"soda", "gluon", "clipped-scion", "scion-light"};
        EXPECT_EQ(fused > 0, never.count(name) == 0);
        const std::set<std::string> always = {"adamw", "lion", "signum", "nsgd"};
        if (always.count(name) > 0) {
            EXPECT_EQ(fused, 10);
        }
    }
}

// Options of stages that go along, and those that do not.
TEST(FusedOptimizer, Options) {
    GroupConfig group;
    group.momentum = {MomentumType::ema, 0.9};
    group.norm.type = NormType::frobenius;
    const auto fused = [](const GroupConfig& group) {
        OptimizerConfig config;
        config.weight_decay = 0.1;
        config.groups = {group};
        return expect_equal(config, DType::f32, true);
    };
    EXPECT_EQ(fused(group), 10);
    const auto with = [&](auto change) {
        GroupConfig changed = group;
        change(changed);
        return fused(changed);
    };
    EXPECT_EQ(with([](auto& g) { g.momentum.starts_with_gradient = true; }), 10);
    EXPECT_EQ(with([](auto& g) { g.momentum.eta_power = 2.0 / 3.0; }), 10);
    EXPECT_EQ(with([](auto& g) { g.momentum.type = MomentumType::none; }), 10);
    EXPECT_EQ(with([](auto& g) { g.norm.type = NormType::rms; }), 10);
    EXPECT_EQ(with([](auto& g) { g.decay.type = DecayType::cautious; }), 10);
    EXPECT_EQ(with([](auto& g) { g.decay.type = DecayType::constrained; }), 10);
    EXPECT_EQ(with([](auto& g) { g.decay.type = DecayType::start; }), 0);
    EXPECT_EQ(with([](auto& g) { g.norm.type = NormType::row; }), 0);
    EXPECT_EQ(with([](auto& g) { g.post.type = PostType::frobenius; }), 0);
    EXPECT_EQ(with([](auto& g) { g.step.rule = StepRule::dual; }), 0);
    EXPECT_EQ(with([](auto& g) { g.alternate.emplace().norm.type = NormType::sign; }), 0);
    EXPECT_EQ(with([](auto& g) { g.momentum = {MomentumType::gradient, 0.9}; }), 0);
    const auto adam = [&](NormType norm) {
        return with([&](auto& g) {
            g.momentum = {MomentumType::adam, 0.0, 0.9, 0.95};
            g.norm.type = norm;
        });
    };
    EXPECT_EQ(adam(NormType::none), 10);
    EXPECT_EQ(adam(NormType::sign), 10);
    EXPECT_EQ(adam(NormType::frobenius), 0);
}

}  // namespace
}  // namespace lmo
