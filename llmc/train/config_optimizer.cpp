// Parameter groups from JSON: finding the preset, checking by the schema.

#include "llmc/train/config_optimizer.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "llmc/core/error.h"
#include "llmc/train/config.h"
#include "llmc/train/config_group.h"
#include "llmc/train/config_stages.h"
#include "llmc/train/named.h"
#include "llmc/train/schema_values.h"

namespace lmo {

namespace fs = std::filesystem;

namespace {

// optimizer.decay: the type of another group's decay, with the roles that are usual for it.
void replace_decay(DecayConfig& decay, DecayType type) {
    const bool everywhere = type == DecayType::constrained;
    const bool was_everywhere = decay.type == DecayType::constrained;
    const bool keeps = decay.type != DecayType::none && decay.type != DecayType::start &&
                       everywhere == was_everywhere;
    if (!keeps) decay.roles = everywhere ? all_roles() : DecayConfig{}.roles;
    decay.type = type;
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

// The gram form multiplies many more factors before it sees X again than bf16 has digits for.
void check_norm(const Json& norm, const Provenance& origin, const std::string& path) {
    if (norm.value("form", "") == "gram" && norm.at("inner") == "bf16") {
        reject(origin, path + "inner", norm.at("inner"),
               "fp16, fp32 or auto, as " + path + "form is gram (bf16 is too coarse for it)");
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
        check_norm(resolution.values["norm"], origin, prefix + "norm.");
        const Json& alternate = resolution.values["alternate"];
        if (alternate.contains("norm")) {
            check_norm(alternate["norm"], origin, prefix + "alternate.norm.");
        }
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

}  // namespace lmo
