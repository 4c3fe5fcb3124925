// Parameter groups from JSON: finding the preset, checking by the schema, filling the structs.

#include "llmc/train/config_optimizer.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "llmc/core/error.h"
#include "llmc/norm/newton_schulz.h"
#include "llmc/train/config.h"
#include "llmc/train/named.h"
#include "llmc/train/schema.h"

namespace lmo {

namespace fs = std::filesystem;

namespace {

struct RadiusName {
    const char* text;
    RadiusRule rule;
};
constexpr RadiusName kRadiusRules[] = {{"sqrt(max(1,m/n))", RadiusRule::sqrt_max_1_ratio},
                                       {"sqrt(m/n)", RadiusRule::sqrt_ratio},
                                       {"sqrt(max(m,n))", RadiusRule::sqrt_max}};

MomentumConfig read_momentum(const Json& json) {
    MomentumConfig result;
    result.type = named<MomentumType>(json.at("type"), {{"none", MomentumType::none},
                                                        {"ema", MomentumType::ema},
                                                        {"heavy_ball", MomentumType::heavy_ball},
                                                        {"nesterov", MomentumType::nesterov},
                                                        {"lion", MomentumType::lion},
                                                        {"adam", MomentumType::adam}});
    if (json.value("ema", false)) result.type = MomentumType::nesterov_ema;
    result.beta = json.value("beta", result.beta);
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
                                                    {"spectral", NormType::spectral}});
    if (result.type == NormType::spectral) result.newton_schulz = read_newton_schulz(json);
    return result;
}

Role read_role(const std::string& name) {
    return named<Role>(name, {{"matrix", Role::matrix},
                              {"embedding", Role::embedding},
                              {"head", Role::head},
                              {"gain", Role::gain}});
}

DecayConfig read_decay(const Json& json) {
    DecayConfig result;
    if (json.at("type") == "none") return result;
    result.type = DecayType::decoupled;
    if (!json.at("weight_decay").is_null()) {
        result.weight_decay = json.at("weight_decay").get<double>();
    }
    result.roles.clear();
    for (const std::string role : json.at("roles")) {
        if (role == "any") {
            result.roles = {Role::matrix, Role::embedding, Role::head, Role::gain};
            break;
        }
        result.roles.push_back(read_role(role));
    }
    return result;
}

GroupConfig read_group(const Json& json) {
    GroupConfig result;
    const Json& match = json.at("match");
    if (match.at("role") != "any") result.match.role = read_role(match.at("role"));
    if (!match.at("name").is_null()) result.match.name = match.at("name").get<std::string>();
    result.momentum = read_momentum(json.at("momentum"));
    result.norm = read_norm(json.at("norm"));
    result.radius = *parse_radius(json.at("radius"));
    result.decay = read_decay(json.at("decay"));
    result.lr_scale = json.at("lr_scale");
    return result;
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
        if (!resolution.missing.empty()) reject_missing(origin.of(prefix), resolution.missing);
        result.groups.push_back(read_group(resolution.values));
        result.resolved.push_back(std::move(resolution.values));
    }
    return result;
}

OptimizerGroups read_preset(const Json& preset, const std::string& source) {
    const Provenance origin{source, {}};
    static const std::vector<Key> keys = [] {
        std::vector<Key> result;
        for (const Key& key : config_keys()) {
            if (key.path == "optimizer.groups") result.push_back(key);
        }
        result[0].path = "groups";
        result[0].fallback.kind = Default::Kind::required;
        Key description = result[0];
        description.path = "description";
        description.accepts = {Accepts::Kind::text};
        description.fallback.kind = Default::Kind::value;
        result.push_back(description);
        return result;
    }();
    const Resolution resolution = resolve(keys, preset, origin, "", true);
    if (!resolution.missing.empty()) reject_missing(source, resolution.missing);
    return read_groups(resolution.values.at("groups"), origin, "groups");
}

}  // namespace

OptimizerGroups optimizer_groups(const Json& resolved, const Provenance& origin) {
    if (const Json* groups = find_value(resolved, "optimizer.groups")) {
        return read_groups(*groups, origin, "optimizer.groups");
    }
    const std::string preset = *find_value(resolved, "optimizer.preset");
    const std::string named_by = origin.of("optimizer.preset");
    if (preset.find('/') != std::string::npos || fs::path(preset).extension() == ".json") {
        std::string path = (fs::path(named_by).parent_path() / preset).lexically_normal().string();
        std::error_code ignored;  // what cannot be examined cannot be read either
        if (!fs::exists(path, ignored)) path = preset;
        return read_preset(
            read_json_object(path, named_by + ": optimizer.preset = \"" + preset + "\": "), path);
    }
    std::string known;
    for (const EmbeddedPreset& embedded : embedded_presets()) {
        if (preset == embedded.name) {
            const std::string source = "preset \"" + preset + "\"";
            return read_preset(parse_config(embedded.json, source), source);
        }
        known += std::string(embedded.name) + ", ";
    }
    reject(origin, "optimizer.preset", preset,
           "one of " + known + "or the path of a preset file (NAME.json)");
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
    if (star != std::string::npos) {
        const char* end = text.data() + star;
        const auto [parsed, error] = std::from_chars(text.data(), end, result.factor);
        if (error != std::errc() || parsed != end) return std::nullopt;
        if (!(result.factor > 0) || std::isinf(result.factor)) return std::nullopt;
        text.erase(0, star + 1);
    }
    for (const RadiusName& name : kRadiusRules) {
        if (text != name.text) continue;
        result.rule = name.rule;
        return result;
    }
    return std::nullopt;
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
