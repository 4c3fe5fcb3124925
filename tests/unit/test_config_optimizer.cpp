// Optimizer presets and groups in a configuration.

#include <cmath>

#include "config_files.h"

using namespace lmo;

class ConfigOptimizer : public ConfigFiles {
  protected:
    // The error of a preset file whose only group this is; preset.json stands for its name.
    std::string group(const std::string& json) const {
        write("preset.json", "{\"groups\": [" + json + "]}");
        return error_with(R"({"optimizer": {"preset": "preset.json"}})");
    }
};

TEST_F(ConfigOptimizer, EveryShippedPresetLoadsByNameAndByPath) {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator("configs/optimizer")) {
        const std::string name = entry.path().stem().string();
        const Config by_name = load("base.json", {"optimizer.preset=" + name});
        const Config by_path = load("base.json", {"optimizer.preset=" + entry.path().string()});
        EXPECT_FALSE(by_name.optimizer.groups.empty());
        EXPECT_EQ(by_name.resolved["optimizer"]["groups"], by_path.resolved["optimizer"]["groups"]);
        ++count;
    }
    EXPECT_GE(count, 6);
    EXPECT_EQ(static_cast<size_t>(count), embedded_presets().size());
}

TEST_F(ConfigOptimizer, AUsersOwnMixture) {
    write("mine/mix.json", R"json({"description": "a mixture", "groups": [
        {"match": {"role": "head", "name": "lm_*"}, "momentum": {"type": "ema", "beta": 0.9},
         "norm": {"type": "sign"}, "radius": 3000, "lr_scale": 0.5,
         "decay": {"type": "decoupled", "weight_decay": 0.3, "roles": ["any"]}},
        {"match": {"role": "matrix"}, "momentum": {"type": "nesterov", "beta": 0.8, "ema": true},
         "norm": {"type": "spectral", "coefficients": [[1.5, -0.5, 0], [2, -1.5, 0.5]], "steps": 3},
         "radius": " 0.5 * sqrt( max(1, m/n) )", "decay": {"type": "decoupled", "roles": ["matrix"]}},
        {"match": {"name": "*norm*"}},
        {"match": {"role": "any"}, "momentum": {"type": "lion", "beta1": 0.95, "beta2": 0.98},
         "norm": {"type": "frobenius"}, "radius": "sqrt(m/n)", "decay": "none"}]})json");
    write("mine/run.json", R"({"include": "../base.json", "optimizer": {"preset": "mix.json"}})");
    const Config c = load("mine/run.json");
    ASSERT_EQ(c.optimizer.groups.size(), 4u);
    const GroupConfig& head = c.optimizer.groups[0];
    EXPECT_EQ(head.match.role, Role::head);
    EXPECT_EQ(head.match.name, "lm_*");
    EXPECT_EQ(head.momentum.type, MomentumType::ema);
    EXPECT_EQ(head.momentum.beta, 0.9);
    EXPECT_EQ(head.norm.type, NormType::sign);
    EXPECT_EQ(head.radius.rule, RadiusRule::one);
    EXPECT_EQ(head.radius.factor, 3000.0);
    EXPECT_EQ(head.lr_scale, 0.5);
    EXPECT_EQ(head.decay.type, DecayType::decoupled);
    EXPECT_EQ(head.decay.weight_decay, 0.3);
    EXPECT_EQ(head.decay.roles.size(), 4u);

    const GroupConfig& matrix = c.optimizer.groups[1];
    EXPECT_EQ(matrix.match.role, Role::matrix);
    EXPECT_EQ(matrix.momentum.type, MomentumType::nesterov_ema);
    ASSERT_EQ(matrix.norm.newton_schulz.steps.size(), 3u);
    EXPECT_EQ(matrix.norm.newton_schulz.steps[0].a, 1.5);
    EXPECT_EQ(matrix.norm.newton_schulz.steps[1].c, 0.5);
    EXPECT_EQ(matrix.norm.newton_schulz.steps[2].b, -1.5);  // the last entry repeats
    EXPECT_EQ(matrix.radius.rule, RadiusRule::sqrt_max_1_ratio);
    EXPECT_EQ(matrix.radius.factor, 0.5);
    EXPECT_FALSE(matrix.decay.weight_decay);
    EXPECT_EQ(matrix.decay.roles, std::vector<Role>{Role::matrix});

    const GroupConfig& plain = c.optimizer.groups[2];
    EXPECT_FALSE(plain.match.role);
    EXPECT_EQ(plain.match.name, "*norm*");
    EXPECT_EQ(plain.momentum.type, MomentumType::none);
    EXPECT_EQ(plain.norm.type, NormType::none);
    EXPECT_EQ(plain.radius.factor, 1.0);
    EXPECT_EQ(plain.decay.type, DecayType::none);

    const GroupConfig& rest = c.optimizer.groups[3];
    EXPECT_FALSE(rest.match.role);
    EXPECT_EQ(rest.match.name, "");
    EXPECT_EQ(rest.momentum.type, MomentumType::lion);
    EXPECT_EQ(rest.momentum.beta1, 0.95);
    EXPECT_EQ(rest.momentum.beta2, 0.98);
    EXPECT_EQ(rest.radius.rule, RadiusRule::sqrt_ratio);
    EXPECT_EQ(c.resolved["optimizer"]["groups"][1]["norm"]["steps"], 3);
    // What was resolved no longer needs the file.
    std::filesystem::remove(path("mine/mix.json"));
    EXPECT_EQ(config_from_json(c.resolved, "state.json", ConfigUse::train).resolved.dump(),
              c.resolved.dump());
}

TEST_F(ConfigOptimizer, SpectralDefaults) {
    const auto steps = [&](const std::string& coefficients) {
        write("p.json", R"({"groups": [{"match": {"role": "any"}, "norm":
            {"type": "spectral", "coefficients": )" +
                            coefficients + "}}]}");
        const Config c = load("base.json", {"optimizer.preset=" + path("p.json")});
        return c.optimizer.groups[0].norm.newton_schulz.steps.size();
    };
    EXPECT_EQ(steps("\"polar-express\""), 5u);
    EXPECT_EQ(steps("[[1.5, -0.5, 0], [1.5, -0.5, 0]]"), 2u);
}

TEST_F(ConfigOptimizer, GroupsReplaceThePresets) {
    const Config c = load("base.json", {R"(optimizer.groups=[{"match": {"role": "any"}}])"});
    EXPECT_EQ(c.optimizer.groups.size(), 1u);
    write("g.json", R"({"include": "base.json", "optimizer": {"preset": null,
                        "groups": [{"match": {"role": "any"}, "lr_scale": 2}]}})");
    EXPECT_EQ(load("g.json").optimizer.groups[0].lr_scale, 2.0);
    EXPECT_EQ(error("g.json", {R"(optimizer.groups=[{"match": {"role": "any"}, "lr_scal": 2}])"}),
              "--set: unknown key \"optimizer.groups[0].lr_scal\"; did you mean "
              "\"optimizer.groups[0].lr_scale\"?");
    // A preset chosen later replaces groups given before.
    EXPECT_EQ(load("g.json", {"optimizer.preset=muon"}).optimizer.groups.size(), 2u);
    EXPECT_EQ(error("g.json", {"optimizer.groups=[]"}),
              "--set: optimizer.groups = []: expected a list of parameter groups");
}

TEST_F(ConfigOptimizer, PresetErrors) {
    std::string names;
    for (const EmbeddedPreset& preset : embedded_presets())
        names += preset.name + std::string(", ");
    EXPECT_EQ(error("base.json", {"optimizer.preset=muonn"}),
              "--set: optimizer.preset = \"muonn\": expected one of " + names +
                  "or the path of a preset file (NAME.json)");
    EXPECT_EQ(error("base.json", {"optimizer.preset=no/such.json"}),
              "--set: optimizer.preset = \"no/such.json\": cannot read no/such.json: No such file "
              "or directory");
    write("p.json", R"({"description": "x"})");
    EXPECT_EQ(error_with(R"({"optimizer": {"preset": "p.json"}})"),
              "p.json: missing: groups (a list of parameter groups)");
    write("p.json", R"({"group": []})");
    EXPECT_EQ(error_with(R"({"optimizer": {"preset": "p.json"}})"),
              "p.json: unknown key \"group\"; did you mean \"groups\"?");
}

TEST_F(ConfigOptimizer, GroupErrors) {
    EXPECT_EQ(group(R"({"match": {"role": "any"}, "momentum": {"type": "ema", "betta": 0.9}})"),
              "preset.json: unknown key \"groups[0].momentum.betta\"; did you mean "
              "\"groups[0].momentum.beta\"?");
    EXPECT_EQ(group(R"({"match": {"role": "any"}, "momentum": {"type": "adam", "beta": 0.9}})"),
              "preset.json: groups[0].momentum.beta = 0.9 is not used with "
              "groups[0].momentum.type = \"adam\", only with \"ema\", \"heavy_ball\", "
              "\"nesterov\", \"gradient\"; remove it or set it to null");
    EXPECT_EQ(group(R"({"match": {"role": "any"}, "momentum": {"type": "ema", "beta": 1}})"),
              "preset.json: groups[0].momentum.beta = 1: expected a number >= 0 and < 1");
    EXPECT_EQ(group(R"({"match": {"role": "any"}, "momentum": {"type": "adam"}})"),
              "preset.json: missing: groups[0].momentum.beta1 (a number >= 0 and < 1), "
              "groups[0].momentum.beta2 (a number >= 0 and < 1)");
    EXPECT_EQ(group(R"({"match": {}})"),
              "preset.json: missing: groups[0].match.role or groups[0].match.name (\"any\" as the "
              "role takes every parameter that is left)");
    EXPECT_EQ(group(R"({"match": {"role": "bias"}})"),
              "preset.json: groups[0].match.role = \"bias\": expected one of \"matrix\", "
              "\"embedding\", \"head\", \"gain\", \"any\"");
    EXPECT_EQ(
        group(R"({"match": {"role": "any"}, "norm": {"type": "spectral",
                        "coefficients": "jordon"}})"),
        "preset.json: groups[0].norm.coefficients = \"jordon\": expected \"jordan\", \"you\", "
        "\"polar-express\", \"cans\", \"cubic\", or a list of [a, b, c]");
    EXPECT_EQ(group(R"({"match": {"role": "any"}, "norm": {"type": "spectral",
                        "coefficients": [[1, 2]]}})")
                  .substr(0, 55),
              "preset.json: groups[0].norm.coefficients = [[1,2]]: exp");
    EXPECT_EQ(group(R"({"match": {"role": "any"}, "norm": {"type": "spectral",
        "coefficients": "you", "form": "gram", "inner": "bf16"}})"),
              "preset.json: groups[0].norm.inner = \"bf16\": expected fp16, fp32 or auto, as "
              "groups[0].norm.form is gram (bf16 is too coarse for it)");
    EXPECT_EQ(group(R"({"match": {"role": "any"}, "norm": {"type": "sign", "steps": 5}})"),
              "preset.json: groups[0].norm.steps = 5 is not used with groups[0].norm.type = "
              "\"sign\", only with \"spectral\"; remove it or set it to null");
    for (const std::string radius : {"\"sqrt(n/m)\"", "0", "\"x*sqrt(m/n)\"", "\"-1*sqrt(m/n)\"",
                                     "\"inf*sqrt(m/n)\"", "\"2\"", "true", "[1]"}) {
        EXPECT_EQ(group(R"({"match": {"role": "any"}, "radius": )" + radius + "}"),
                  "preset.json: groups[0].radius = " + radius +
                      ": expected a number > 0, or one of \"sqrt(max(1,m/n))\", \"sqrt(m/n)\", "
                      "\"sqrt(max(m,n))\", \"sqrt(m)\", \"sqrt(n)\", \"sqrt(m*n)\", \"1/n\", "
                      "\"1/sqrt(n)\" with or without a factor, as in \"0.2*sqrt(max(m,n))\"");
    }
    EXPECT_EQ(group(R"({"match": {"role": "any"}, "decay": "coupled"})"),
              "preset.json: groups[0].decay.type = \"coupled\": expected one of \"none\", "
              "\"decoupled\", \"constrained\", \"cautious\", \"start\"");
    EXPECT_EQ(group(R"({"match": {"role": "any"},
                        "decay": {"type": "decoupled", "roles": ["matrices"]}})"),
              "preset.json: groups[0].decay.roles = [\"matrices\"]: expected a list of roles");
    EXPECT_EQ(group(R"({"match": {"role": "any"}, "momentum": "ema"})"),
              "preset.json: groups[0].momentum = \"ema\": expected an object");
    EXPECT_EQ(group(R"({"match": {"role": "any"}, "momentum": {"type": "nesterov",
                        "type": "ema"}})")
                  .substr(0, 21),
              "preset.json: line 2, ");
}
