// A parameter group from its resolved keys.

#include "llmc/train/config_group.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "llmc/norm/newton_schulz.h"
#include "llmc/train/named.h"
#include "llmc/train/schema_values.h"

namespace lmo {

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

NewtonSchulzSet read_coefficients(const Json& norm) {
    const int steps = norm.at("steps");
    const Json& coefficients = norm.at("coefficients");
    if (coefficients.is_string()) return newton_schulz_set(coefficients, steps);
    NewtonSchulzSet set;
    for (int i = 0; i < steps; ++i) {
        const Json& c = coefficients[std::min<size_t>(i, coefficients.size() - 1)];
        set.steps.push_back({c[0], c[1], c[2]});
    }
    set.restarts = gram_restarts(set.steps);
    return set;
}

NewtonSchulzSet read_newton_schulz(const Json& norm) {
    NewtonSchulzSet set = read_coefficients(norm);
    set.form = named<NewtonSchulzForm>(norm.at("form"), {{"auto", NewtonSchulzForm::automatic},
                                                         {"standard", NewtonSchulzForm::standard},
                                                         {"gram", NewtonSchulzForm::gram}});
    if (norm.at("inner") != "auto") {
        set.inner = named<DType>(
            norm.at("inner"), {{"fp16", DType::f16}, {"bf16", DType::bf16}, {"fp32", DType::f32}});
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
            result.roles = all_roles();
            break;
        }
        result.roles.push_back(read_role(role));
    }
    return result;
}

}  // namespace

DecayType decay_type(const std::string& name) {
    return named<DecayType>(name, {{"none", DecayType::none},
                                   {"decoupled", DecayType::decoupled},
                                   {"constrained", DecayType::constrained},
                                   {"cautious", DecayType::cautious},
                                   {"start", DecayType::start}});
}

const std::vector<Role>& all_roles() {
    static const std::vector<Role> roles = {Role::matrix, Role::embedding, Role::head, Role::gain};
    return roles;
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
