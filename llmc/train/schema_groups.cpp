// The keys of a parameter group, in a configuration or in a preset file.

#include <algorithm>

#include "llmc/norm/newton_schulz.h"
#include "llmc/train/config_group.h"
#include "llmc/train/schema_values.h"

namespace lmo {

using namespace schema;

namespace {

// Of the norm at `path`.
std::function<Json(const Json&)> newton_schulz_steps(const std::string& path) {
    return [path](const Json& group) -> Json {
        const Json* coefficients = find_value(group, path + ".coefficients");
        return coefficients && coefficients->is_array() ? coefficients->size() : 5;
    };
}

Json decaying_roles(const Json& group) {
    const bool all = group["decay"]["type"] == "constrained";
    return all ? Json::array({"any"}) : Json::array({"matrix", "head"});
}

bool is_schatten_exponent(const Json& value) {
    return value == "inf" || (value.is_number() && value.get<double>() >= 1);
}

// {"BLOCK": [L0, L1], ...}, not both zero.
bool is_layer_constants(const Json& value) {
    if (!value.is_object() || value.empty()) return false;
    return std::all_of(value.begin(), value.end(), [](const Json& pair) {
        const auto not_negative = [](const Json& c) {
            return c.is_number() && c.get<double>() >= 0 && c.get<double>() < kUnbounded;
        };
        return pair.is_array() && pair.size() == 2 && not_negative(pair[0]) &&
               not_negative(pair[1]) && pair[0].get<double>() + pair[1].get<double>() > 0;
    });
}

std::string coefficients_expected() {
    std::string names;
    for (const std::string& name : newton_schulz_set_names()) names += "\"" + name + "\", ";
    return names + "or a list of [a, b, c]";
}

bool is_role_list(const Json& value) {
    if (!value.is_array()) return false;
    for (const Json& role : value) {
        if (std::find(role_names().begin(), role_names().end(), role) == role_names().end()) {
            return false;
        }
    }
    return true;
}

Accepts radius() {
    return special(radius_expected(), [](const Json& v) { return parse_radius(v).has_value(); });
}

// The keys of a norm at `path` ("norm", "alternate.norm").
void add_norm_keys(std::vector<Key>& keys, const std::string& path, const When& when) {
    const When spectral = {path + ".type", {"spectral"}};
    keys.push_back(
        {path + ".type",
         one_of({"none", "sign", "frobenius", "rms", "row", "column", "spectral", "schatten"}),
         is("none"), "norm whose steepest direction is taken (optimizers.md)", when});
    keys.push_back({path + ".coefficients", special(coefficients_expected(), is_coefficients),
                    required(), "Newton-Schulz coefficients", spectral});
    keys.push_back({path + ".steps", integer(1, 1000),
                    computed("5, or the length of the list", newton_schulz_steps(path)),
                    "Newton-Schulz steps; beyond the coefficients the last ones repeat", spectral});
    keys.push_back({path + ".form", one_of({"auto", "standard", "gram"}), is("auto"),
                    "of Newton-Schulz: gram iterates on the smaller Gram matrix alone, less work "
                    "for matrices far from square; auto: gram where it is faster",
                    spectral});
    keys.push_back({path + ".inner", one_of({"auto", "fp16", "bf16", "fp32"}), is("auto"),
                    "type of the matrices inside of Newton-Schulz; auto: fp16 on GPUs, else fp32; "
                    "a CPU has fp32, and bf16 where it has AVX512-BF16",
                    spectral});
    keys.push_back({path + ".p",
                    special("a number >= 1, or \"inf\"", is_schatten_exponent),
                    required(),
                    "exponent of the Schatten norm",
                    {path + ".type", {"schatten"}}});
}

std::vector<Key> momentum_keys() {
    const Accepts share = from_below(0, 1);
    const When one_beta = {"momentum.type", {"ema", "heavy_ball", "nesterov", "gradient"}};
    const When two_betas = {"momentum.type", {"lion", "adam"}};
    const When adam = {"momentum.type", {"adam"}};
    return {
        {"match.role", one_of(role_names()), is("any"),
         "parameters of this role: matrix (hidden weights), embedding, head (untied), gain "
         "(RMSNorm)"},
        {"match.name", text(), none("any name"), "and with a name of this pattern (* and ?)"},
        {"momentum.type",
         one_of({"none", "ema", "heavy_ball", "nesterov", "lion", "adam", "gradient"}), is("none"),
         "what becomes of the gradient g; m is the state. gradient: heavy_ball that lives in the "
         "gradients' own memory (ScionLight; no clipping)"},
        {"momentum.eta_power",
         power(),
         none(),
         "q: 1-beta is (k+1)^-q after k updates, and momentum.beta is not read; published: "
         "\"1/2\", igt \"4/7\", storm and hessian \"2/3\"",
         {"momentum.type", {"ema"}}},
        {"momentum.beta", share, none("required unless eta_power is given"),
         "ema: m = beta m + (1-beta) g; heavy_ball, nesterov, gradient: m = beta m + g", one_beta},
        {"momentum.ema",
         boolean(),
         is(false),
         "m = beta m + (1-beta) g instead",
         {"momentum.type", {"nesterov"}}},
        {"momentum.start",
         one_of({"zero", "gradient"}),
         is("zero"),
         "m before the first update; gradient: the first one",
         {"momentum.type", {"ema", "heavy_ball", "nesterov", "lion"}}},
        {"momentum.beta1", share, required(), "lion: share of m in the update; adam: first moment",
         two_betas},
        {"momentum.beta2", share, required(), "lion: share of m kept; adam: second moment",
         two_betas},
        {"momentum.eps", above(0), is(1e-8), "added to the root of the second moment", adam},
        {"momentum.eps_inside", boolean(), is(false), "eps before the bias correction", adam},
    };
}

// What follows the norm: post, step, decay.
std::vector<Key> step_keys() {
    const When moments = {"post.type", {"row_moment"}};
    const When gluon = {"step.type", {"gluon"}};
    const When decoupled = {"decay.type", {"decoupled", "cautious"}};
    return {
        {"radius", radius(), is(1.0), "factor of the direction of an m x n matrix, times the rate"},
        {"post.type", one_of({"none", "frobenius", "row_moment"}), is("none"),
         "what is done to the direction: frobenius: scaled to unit Frobenius norm; row_moment: "
         "rows "
         "over the root of their second moment, at the old Frobenius norm (NorMuon)"},
        {"post.beta2", from_below(0, 1), is(0.95), "share of the second moment kept", moments},
        {"post.eps", above(0), is(1e-8), "added to its root", moments},
        {"step.type", one_of({"schedule", "dual", "clipped", "gluon"}), is("schedule"),
         "length of a step, as a factor of rate and radius; with d the dual norm: schedule: 1; "
         "dual: d; clipped: min(limit, d); gluon: d / (L0 + L1 d)"},
        {"step.limit",
         above(0),
         required(),
         "largest dual norm that counts",
         {"step.type", {"clipped"}}},
        {"step.together",
         boolean(),
         is(false),
         "d is the sum over the group's blocks of one shape",
         {"step.type", {"dual", "clipped"}}},
        {"step.L0", at_least(0), is(0.0), "of blocks that step.layers does not name", gluon},
        {"step.L1", at_least(0), is(0.0), "of blocks that step.layers does not name", gluon},
        {"step.fit", text(), none(),
         "JSON file of `train_gpt smoothness --layers --out`: L0 and L1 of each block (step.layers "
         "comes first)",
         gluon},
        {"step.layers",
         special("{\"BLOCK\": [L0, L1], ...}, >= 0 and not both 0", is_layer_constants),
         none("from step.fit"), "L0 and L1 of blocks", gluon},
        {"step.inexact",
         boolean(),
         is(false),
         "times (1-e)/(1+e)^2 with e the measured error of the orthogonalisation (inexact Muon)",
         {"norm.type", {"spectral"}}},
        {"decay.type", one_of({"none", "decoupled", "constrained", "cautious", "start"}),
         is("none"),
         "decay of the weights: decoupled: 1 - lr weight_decay; constrained: 1 - lr (Scion); "
         "cautious: decoupled, where the update has the weight's sign; start: towards the first "
         "weights by 1/(k+2) (SODA). \"decay\": \"decoupled\" is short for its type"},
        {"decay.weight_decay", at_least(0), none("optimizer.weight_decay"), "for this group",
         decoupled},
        {"decay.roles",
         special("a list of roles", is_role_list),
         computed("matrix and head; constrained: any", decaying_roles),
         "roles that decay; any: all",
         {"decay.type", {"decoupled", "cautious", "constrained"}}},
        {"lr_scale", above(0), is(1.0), "rate of this group over the scheduled one"},
    };
}

std::vector<Key> make_group_keys() {
    const When alternates = {"alternate.type", {"periodic", "stable_rank"}};
    std::vector<Key> keys = momentum_keys();
    add_norm_keys(keys, "norm", {});
    for (const Key& key : step_keys()) keys.push_back(key);
    keys.push_back({"alternate.type", one_of({"none", "periodic", "stable_rank"}), is("none"),
                    "a second direction in turn with the first, by the number of the update or, "
                    "for each matrix, by its stable rank (LionMuon)"});
    keys.push_back({"alternate.period",
                    integer(1, kMaxExtent),
                    required(),
                    "the first direction at updates 0, period, 2 period, ...",
                    {"alternate.type", {"periodic"}}});
    keys.push_back({"alternate.stable_rank",
                    above(0),
                    required(),
                    "the first direction where (stable rank)^2 <= this times min(m, n)",
                    {"alternate.type", {"stable_rank"}}});
    add_norm_keys(keys, "alternate.norm", alternates);
    keys.push_back({"alternate.radius", radius(), is(1.0), "of the second direction", alternates});
    keys.push_back(
        {"alternate.lr_scale", above(0), is(1.0), "of the second direction", alternates});
    return keys;
}

}  // namespace

const std::vector<std::string>& role_names() {
    static const std::vector<std::string> names = {"matrix", "embedding", "head", "gain", "any"};
    return names;
}

const std::vector<Key>& group_keys() {
    static const std::vector<Key> keys = make_group_keys();
    return keys;
}

}  // namespace lmo
