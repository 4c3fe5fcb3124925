// Parameter groups from JSON: finding the preset, checking by the schema, filling the structs.

#include "llmc/train/config_optimizer.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>

#include "llmc/core/error.h"
#include "llmc/norm/newton_schulz.h"
#include "llmc/train/config.h"
#include "llmc/train/config_stages.h"
#include "llmc/train/named.h"
#include "llmc/train/schema_values.h"

namespace lmo {

namespace fs = std::filesystem;

namespace {

struct RadiusName {
    const char* text;
    RadiusRule rule;
};
constexpr RadiusName kRadiusRules[] = {{"sqrt(max(1,m/n))", RadiusRule::sqrt_max_1_ratio},
                                       {"sqrt(m/n)", RadiusRule::sqrt_ratio},
                                       {"sqrt(max(m,n))", RadiusRule::sqrt_max},
                                       {"sqrt(m)", RadiusRule::sqrt_rows},
                                       {"sqrt(n)", RadiusRule::sqrt_columns},
                                       {"sqrt(m*n)", RadiusRule::sqrt_count},
                                       {"1/n", RadiusRule::inverse_columns},
                                       {"1/sqrt(n)", RadiusRule::inverse_sqrt_columns}};

std::optional<RadiusRule> radius_rule(const std::string& text) {
    for (const RadiusName& name : kRadiusRules) {
        if (text == name.text) return name.rule;
    }
    return std::nullopt;
}

MomentumConfig read_momentum(const Json& json) {
    MomentumConfig result;
    result.type = named<MomentumType>(json.at("type"), {{"none", MomentumType::none},
                                                        {"ema", MomentumType::ema},
                                                        {"heavy_ball", MomentumType::heavy_ball},
                                                        {"nesterov", MomentumType::nesterov},
                                                        {"lion", MomentumType::lion},
                                                        {"adam", MomentumType::adam},
                                                        {"gradient", MomentumType::gradient}});
    if (json.value("ema", false)) result.type = MomentumType::nesterov_ema;
    result.starts_with_gradient = json.value("start", "zero") == "gradient";
    const auto given = [&](const char* key) { return json.contains(key) && !json[key].is_null(); };
    if (given("beta")) result.beta = json["beta"];
    if (given("eta_power")) result.eta_power = *schema::power_of(json["eta_power"]);
    result.beta1 = json.value("beta1", result.beta1);
    result.beta2 = json.value("beta2", result.beta2);
    result.eps = json.value("eps", result.eps);
    result.eps_inside = json.value("eps_inside", result.eps_inside);
    return result;
}

NewtonSchulzSet read_newton_schulz(const Json& norm) {
    const int steps = norm.at("steps");
    const Json& coefficients = norm.at("coefficients");
    if (coefficients.is_string()) return newton_schulz_set(coefficients, steps);
    NewtonSchulzSet set;
    for (int i = 0; i < steps; ++i) {
        const Json& c = coefficients[std::min<size_t>(i, coefficients.size() - 1)];
        set.steps.push_back({c[0], c[1], c[2]});
    }
    return set;
}

NormConfig read_norm(const Json& json) {
    NormConfig result;
    result.type = named<NormType>(json.at("type"), {{"none", NormType::none},
                                                    {"sign", NormType::sign},
                                                    {"frobenius", NormType::frobenius},
                                                    {"rms", NormType::rms},
                                                    {"row", NormType::row},
                                                    {"column", NormType::column},
                                                    {"spectral", NormType::spectral},
                                                    {"schatten", NormType::schatten}});
    if (result.type == NormType::spectral) result.newton_schulz = read_newton_schulz(json);
    if (result.type == NormType::schatten) {
        const Json& p = json.at("p");
        result.p = p.is_string() ? std::numeric_limits<double>::infinity() : p.get<double>();
    }
    return result;
}

PostConfig read_post(const Json& json) {
    PostConfig result;
    result.type = named<PostType>(json.at("type"), {{"none", PostType::none},
                                                    {"frobenius", PostType::frobenius},
                                                    {"row_moment", PostType::row_moment}});
    result.beta2 = json.value("beta2", result.beta2);
    result.eps = json.value("eps", result.eps);
    return result;
}

StepConfig read_step(const Json& json) {
    StepConfig result;
    result.rule = named<StepRule>(json.at("type"), {{"schedule", StepRule::unit},
                                                    {"dual", StepRule::dual},
                                                    {"clipped", StepRule::clipped},
                                                    {"gluon", StepRule::gluon}});
    result.limit = json.value("limit", result.limit);
    result.together = json.value("together", result.together);
    result.l0 = json.value("L0", result.l0);
    result.l1 = json.value("L1", result.l1);
    result.inexact = json.value("inexact", result.inexact);
    const auto layers = json.find("layers");
    if (layers == json.end() || layers->is_null()) return result;
    for (const auto& [block, constants] : layers->items()) {
        result.layers[block] = {constants[0], constants[1]};
    }
    return result;
}

std::optional<AlternateConfig> read_alternate(const Json& json) {
    if (json.at("type") == "none") return std::nullopt;
    AlternateConfig result;
    result.period = json.value("period", result.period);
    result.stable_rank = json.value("stable_rank", result.stable_rank);
    result.norm = read_norm(json.at("norm"));
    result.radius = *parse_radius(json.at("radius"));
    result.lr_scale = json.at("lr_scale");
    return result;
}

Role read_role(const std::string& name) {
    return named<Role>(name, {{"matrix", Role::matrix},
                              {"embedding", Role::embedding},
                              {"head", Role::head},
                              {"gain", Role::gain}});
}

DecayType decay_type(const std::string& name) {
    return named<DecayType>(name, {{"none", DecayType::none},
                                   {"decoupled", DecayType::decoupled},
                                   {"constrained", DecayType::constrained},
                                   {"cautious", DecayType::cautious},
                                   {"start", DecayType::start}});
}

const std::vector<Role> kAllRoles = {Role::matrix, Role::embedding, Role::head, Role::gain};

DecayConfig read_decay(const Json& json) {
    DecayConfig result;
    result.type = decay_type(json.at("type"));
    const auto weight = json.find("weight_decay");
    if (weight != json.end() && !weight->is_null()) result.weight_decay = weight->get<double>();
    const auto roles = json.find("roles");
    if (roles == json.end()) return result;
    result.roles.clear();
    for (const std::string role : *roles) {
        if (role == "any") {
            result.roles = kAllRoles;
            break;
        }
        result.roles.push_back(read_role(role));
    }
    return result;
}

// optimizer.decay: the type of another group's decay, with the roles that are usual for it.
void replace_decay(DecayConfig& decay, DecayType type) {
    const bool everywhere = type == DecayType::constrained;
    const bool was_everywhere = decay.type == DecayType::constrained;
    const bool keeps = decay.type != DecayType::none && decay.type != DecayType::start &&
                       everywhere == was_everywhere;
    if (!keeps) decay.roles = everywhere ? kAllRoles : DecayConfig{}.roles;
    decay.type = type;
}

GroupConfig read_group(const Json& json) {
    GroupConfig result;
    const Json& match = json.at("match");
    if (match.at("role") != "any") result.match.role = read_role(match.at("role"));
    if (!match.at("name").is_null()) result.match.name = match.at("name").get<std::string>();
    result.momentum = read_momentum(json.at("momentum"));
    result.norm = read_norm(json.at("norm"));
    result.radius = *parse_radius(json.at("radius"));
    result.post = read_post(json.at("post"));
    result.step = read_step(json.at("step"));
    result.decay = read_decay(json.at("decay"));
    result.lr_scale = json.at("lr_scale");
    result.alternate = read_alternate(json.at("alternate"));
    return result;
}

// step.fit -> step.layers, so that the constants are part of the resolved configuration; and a
// gluon step has constants at all.
void resolve_step(Json& step, const Provenance& origin, const std::string& path) {
    if (step.at("type") != "gluon") return;
    if (!step.at("fit").is_null() && step.at("layers").is_null()) {
        const std::string file = step.at("fit");
        const Json fit = read_json_object(
            file, origin.of(path + "fit") + ": " + path + "fit = \"" + file + "\": ");
        const auto layers = fit.find("layers");
        if (layers == fit.end() || !layers->is_object() || layers->empty()) {
            throw UsageError(file +
                             ": no \"layers\": expected a file that `train_gpt smoothness "
                             "--layers --out` wrote");
        }
        for (const auto& [block, constants] : layers->items()) {
            const auto number = [&, &values = constants](const char* key) {
                const auto found = values.is_object() ? values.find(key) : values.end();
                return found != values.end() && found->is_number() ? found->get<double>() : -1.0;
            };
            const double l0 = number("L0"), l1 = number("L1");
            if (!(l0 >= 0 && l1 >= 0 && l0 + l1 > 0 && std::isfinite(l0 + l1))) {
                throw UsageError(file + ": layers." + block +
                                 ": expected L0 and L1 >= 0, not both 0");
            }
            step["layers"][block] = {l0, l1};
        }
    }
    if (step.at("layers").is_null() && !(step.at("L0") > 0.0) && !(step.at("L1") > 0.0)) {
        reject(origin, path + "L1", step.at("L1"),
               "a number > 0 (or L0 > 0, or " + path + "fit, or " + path + "layers)");
    }
}

// momentum.beta, or momentum.eta_power in its place.
void require_beta(Resolution& resolution, const Provenance& origin, const std::string& prefix) {
    if (!resolution.values["momentum"].contains("beta")) return;  // another type
    const Json* beta = find_value(resolution.values, "momentum.beta");
    const Json* power = find_value(resolution.values, "momentum.eta_power");
    if (beta == nullptr && power == nullptr) {
        resolution.missing.push_back(prefix + "momentum.beta (a number >= 0 and < 1)");
    } else if (beta != nullptr && power != nullptr) {
        reject(origin, prefix + "momentum.beta", *beta, "none, as momentum.eta_power is given");
    }
}

// `path`: how messages call the list, "groups" in a preset.
OptimizerGroups read_groups(const Json& list, const Provenance& origin, const std::string& path) {
    OptimizerGroups result;
    result.resolved = Json::array();
    for (size_t i = 0; i < list.size(); ++i) {
        const std::string prefix = path + "[" + std::to_string(i) + "].";
        Json group = list[i];
        if (group.contains("decay") && group["decay"].is_string()) {
            const Json type = group["decay"];
            group["decay"] = {{"type", type}};
        }
        Resolution resolution = resolve(group_keys(), group, origin, prefix, true);
        if (find_value(group, "match.role") == nullptr &&
            find_value(group, "match.name") == nullptr) {
            resolution.missing.insert(resolution.missing.begin(),
                                      prefix + "match.role or " + prefix + "match.name (\"any\" " +
                                          "as the role takes every parameter that is left)");
        }
        require_beta(resolution, origin, prefix);
        if (!resolution.missing.empty()) reject_missing(origin.of(prefix), resolution.missing);
        resolve_step(resolution.values["step"], origin, prefix + "step.");
        result.groups.push_back(read_group(resolution.values));
        result.resolved.push_back(std::move(resolution.values));
    }
    return result;
}

// The keys of a preset file: a description, groups, and settings of the whole optimizer.
const std::vector<Key>& preset_keys() {
    static const std::vector<Key> keys = [] {
        const std::string optimizer = "optimizer.";
        std::vector<Key> result;
        for (Key key : config_keys()) {
            for (const char* name :
                 {"groups", "sampling.", "qk_clip", "estimator.", "communication.", "outer."}) {
                if (key.path.rfind(optimizer + name, 0) != 0) continue;
                key.path.erase(0, optimizer.size());
                if (!key.when.key.empty()) key.when.key.erase(0, optimizer.size());
                if (key.path == "groups") key.fallback.kind = Default::Kind::required;
                result.push_back(key);
            }
        }
        Key description = result[0];
        description.path = "description";
        description.accepts = {Accepts::Kind::text};
        description.fallback.kind = Default::Kind::value;
        description.fallback.compute = [](const Json&) { return Json(); };
        result.push_back(description);
        return result;
    }();
    return keys;
}

struct Preset {
    Json json;
    Provenance origin;
};

Preset find_preset(const std::string& preset, const Provenance& origin) {
    const std::string named_by = origin.of("optimizer.preset");
    if (preset.find('/') != std::string::npos || fs::path(preset).extension() == ".json") {
        std::string path = (fs::path(named_by).parent_path() / preset).lexically_normal().string();
        std::error_code ignored;  // what cannot be examined cannot be read either
        if (!fs::exists(path, ignored)) path = preset;
        return {read_json_object(path, named_by + ": optimizer.preset = \"" + preset + "\": "),
                {path, {}}};
    }
    std::string known;
    for (const EmbeddedPreset& embedded : embedded_presets()) {
        if (preset == embedded.name) {
            const std::string source = "preset \"" + preset + "\"";
            return {parse_config(embedded.json, source), {source, {}}};
        }
        known += std::string(embedded.name) + ", ";
    }
    reject(origin, "optimizer.preset", preset,
           "one of " + known + "or the path of a preset file (NAME.json)");
}

// Every key of a preset is known and acceptable.
Json checked_preset(const Preset& preset) {
    const Resolution resolution = resolve(preset_keys(), preset.json, preset.origin, "", true);
    if (!resolution.missing.empty()) reject_missing(preset.origin.main, resolution.missing);
    return resolution.values;
}

}  // namespace

void add_preset_settings(Json& given, const Provenance& origin) {
    const Json* name = find_value(given, "optimizer.preset");
    if (name == nullptr || !name->is_string() || find_value(given, "optimizer.groups")) return;
    const Preset preset = find_preset(*name, origin);
    checked_preset(preset);
    for (const char* key : {"sampling", "qk_clip", "estimator", "communication", "outer"}) {
        const std::string path = std::string("optimizer.") + key;
        const auto setting = preset.json.find(key);
        if (setting == preset.json.end() || find_value(given, path)) continue;
        set_value(given, path, *setting);
    }
}

OptimizerGroups optimizer_groups(const Json& resolved, const Provenance& origin) {
    if (const Json* groups = find_value(resolved, "optimizer.groups")) {
        return read_groups(*groups, origin, "optimizer.groups");
    }
    const Preset preset = find_preset(*find_value(resolved, "optimizer.preset"), origin);
    return read_groups(checked_preset(preset).at("groups"), preset.origin, "groups");
}

OptimizerConfig read_optimizer(Json& resolved, const Provenance& origin) {
    OptimizerConfig config;
    OptimizerGroups groups = optimizer_groups(resolved, origin);
    config.groups = std::move(groups.groups);
    const Json& optimizer = resolved.at("optimizer");
    config.weight_decay = optimizer.at("weight_decay");
    config.clip_norm = optimizer.at("clip_norm");
    config.fuse_qkv = optimizer.at("qkv") == "fused";
    config.qk_clip = optimizer.at("qk_clip");
    config.momentum_from_weights = optimizer.at("compat").at("momentum_init") == "parameters";
    const auto& all = config.groups;
    if (config.momentum_from_weights &&
        std::none_of(all.begin(), all.end(),
                     [](const GroupConfig& g) { return is_sum_momentum(g.momentum.type); })) {
        reject(origin, "optimizer.compat.momentum_init", "parameters",
               "\"zero\", as no group has momentum.type = \"heavy_ball\" or \"nesterov\"");
    }
    const Json& sampling = optimizer.at("sampling");
    config.sampling.type = named<LayerSamplingType>(
        sampling.at("type"), {{"all", LayerSamplingType::all},
                              {"progressive", LayerSamplingType::progressive},
                              {"subset", LayerSamplingType::subset},
                              {"periodic", LayerSamplingType::periodic}});
    config.sampling.probability = sampling.value("probability", 1.0);
    config.sampling.period = sampling.value("period", int64_t{1});
    config.sampling.seed = resolved.at("run").at("seed");
    config.estimator = read_estimator(resolved, config.groups, origin);
    config.outer = read_outer(resolved);
    if (const Json& decay = optimizer.at("decay"); !decay.is_null()) {
        for (GroupConfig& group : config.groups) replace_decay(group.decay, decay_type(decay));
    }
    set_value(resolved, "optimizer.groups", std::move(groups.resolved));
    return config;
}

std::optional<RadiusConfig> parse_radius(const Json& value) {
    RadiusConfig result;
    if (value.is_number()) {
        result.factor = value;
        return result.factor > 0 ? std::optional(result) : std::nullopt;
    }
    if (!value.is_string()) return std::nullopt;
    std::string text = value;
    text.erase(std::remove(text.begin(), text.end(), ' '), text.end());
    const size_t star = text.find('*');
    if (const auto rule = radius_rule(text)) {
        result.rule = *rule;
        return result;
    }
    if (star == std::string::npos) return std::nullopt;
    const char* end = text.data() + star;
    const auto [parsed, error] = std::from_chars(text.data(), end, result.factor);
    if (error != std::errc() || parsed != end) return std::nullopt;
    if (!(result.factor > 0) || std::isinf(result.factor)) return std::nullopt;
    const auto rule = radius_rule(text.substr(star + 1));
    if (!rule) return std::nullopt;
    result.rule = *rule;
    return result;
}

std::string radius_expected() {
    std::string rules;
    for (const RadiusName& name : kRadiusRules) {
        rules += (rules.empty() ? "\"" : ", \"") + std::string(name.text) + "\"";
    }
    return "a number > 0, or one of " + rules + " with or without a factor, as in \"0.2*" +
           kRadiusRules[2].text + "\"";
}

bool is_coefficients(const Json& value) {
    const std::vector<std::string>& names = newton_schulz_set_names();
    if (value.is_string()) return std::find(names.begin(), names.end(), value) != names.end();
    return value.is_array() && !value.empty() &&
           std::all_of(value.begin(), value.end(), [](const Json& step) {
               return step.is_array() && step.size() == 3 &&
                      std::all_of(step.begin(), step.end(),
                                  [](const Json& c) { return c.is_number(); });
           });
}

}  // namespace lmo
