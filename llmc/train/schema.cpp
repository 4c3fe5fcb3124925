// The table of configuration keys: the one place where a key is added.

#include "llmc/train/schema.h"

#include <algorithm>
#include <limits>

#include "llmc/norm/newton_schulz.h"
#include "llmc/train/config_optimizer.h"

namespace lmo {

namespace {

using Kind = Accepts::Kind;

constexpr double kUnbounded = std::numeric_limits<double>::infinity();
constexpr double kMaxExtent = 1 << 20;      // of one axis of a tensor
constexpr double kMaxVocabulary = 1 << 16;  // token ids are uint16

Accepts text() { return {Kind::text}; }
Accepts texts() { return {Kind::texts}; }
Accepts boolean() { return {Kind::boolean}; }
Accepts integer(double low, double high = kMaxCount) { return {Kind::integer, low, high}; }
Accepts at_least(double low) { return {Kind::number, low, kUnbounded}; }
Accepts above(double low) { return {Kind::number, low, kUnbounded, true}; }
Accepts from_below(double low, double high) { return {Kind::number, low, high, false, true}; }
Accepts above_to(double low, double high) { return {Kind::number, low, high, true}; }
Accepts one_of(std::vector<std::string> choices, std::vector<std::string> later = {}) {
    return {Kind::choice, 0, 0, false, false, std::move(choices), std::move(later)};
}
Accepts special(std::string expected, std::function<bool(const Json&)> valid,
                std::vector<std::string> later = {}) {
    return {Kind::special,      0, 0, false, false, {}, std::move(later), std::move(valid),
            std::move(expected)};
}

Default required() { return {Default::Kind::required, "required"}; }
Default required_by_train() { return {Default::Kind::required_by_train, "required by train"}; }
Default computed(std::string text, std::function<Json(const Json&)> compute) {
    return {Default::Kind::value, std::move(text), std::move(compute)};
}
Default none(std::string text = "none") {
    return computed(std::move(text), [](const Json&) { return Json(); });
}
Default is(const Json& value) {
    return computed(value.is_string() ? value.get<std::string>() : value.dump(),
                    [value](const Json&) { return value; });
}
Default same_as(const std::string& path) {
    return computed(path, [path](const Json& resolved) {
        const Json* value = find_value(resolved, path);
        return value == nullptr ? Json() : *value;
    });
}

Json run_folder(const Json& resolved) {
    return "runs/" + resolved["run"]["name"].get<std::string>();
}

Json warmup_target(const Json& resolved) {
    const Json* target = find_value(resolved, "schedule.warmup.target_loss");
    return target == nullptr ? Json(0.0) : *target;
}

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

bool is_group_list(const Json& value) {
    if (!value.is_array() || value.empty()) return false;
    for (const Json& group : value) {
        if (!group.is_object()) return false;
    }
    return true;
}

bool is_gap(const Json& value) {
    if (value.is_number()) return value.get<double>() > 0;
    for (const char* name : {"exact", "unweighted", "quadpack", "gk21", "measured"}) {
        if (value == name) return true;
    }
    return false;
}

bool is_rate_list(const Json& value) {
    const auto is_rate = [](const Json& rate) {
        return rate.is_number() && rate.get<double>() > 0;
    };
    return value.is_array() && !value.empty() && std::all_of(value.begin(), value.end(), is_rate);
}

std::string coefficients_expected() {
    std::string names;
    for (const std::string& name : newton_schulz_set_names()) names += "\"" + name + "\", ";
    return names + "or a list of [a, b, c]";
}

std::vector<Key> run_and_model_keys() {
    return {
        {"run.name", text(), is("run"), "name of the run"},
        {"run.dir", text(), computed("runs/NAME", run_folder), "folder that the run writes"},
        {"run.note", text(), none(), "a remark for readers, such as the result to compare with"},
        {"run.seed", integer(0), is(0), "seed of the initial weights and of sampled text"},
        {"run.steps", integer(1), required_by_train(), "updates in the whole run"},
        {"run.device", one_of({"auto", "cpu", "cuda"}), is("auto"), "where to compute"},
        {"run.threads", integer(0, 4096), is(0),
         "CPU threads of a rank; 0: all cores, shared by the ranks of a machine"},
        {"run.on_nonfinite", one_of({"stop", "skip", "rollback"}), is("stop"),
         "when loss, gradient or weights are not finite: stop; skip: leave the update out; "
         "rollback: go back to the newest checkpoint and leave it out (nonfinite.md)"},
        {"run.nonfinite_limit",
         integer(1),
         is(10),
         "updates left out in a row, or (rollback) since one checkpoint; one more stops the run",
         {"run.on_nonfinite", {"skip", "rollback"}}},
        {"run.rank_timeout", above_to(0, 1e6), is(60.0),
         "seconds after which a rank that does not come ends all of them (ranks.md)"},

        {"model.n_layer", integer(1, kMaxExtent), required(), "layers"},
        {"model.n_head", integer(1, kMaxExtent), required(), "query heads; divides d_model"},
        {"model.d_model", integer(1, kMaxExtent), required(), "width of the residual stream"},
        {"model.d_ff", integer(1, kMaxExtent), required(), "width of SwiGLU"},
        {"model.vocab_size", integer(1, kMaxVocabulary), required(), "token ids are below it"},
        {"model.seq_len", integer(1, kMaxExtent), required(), "tokens in a training sequence"},
        {"model.n_kv_head", integer(1, kMaxExtent), same_as("model.n_head"),
         "key and value heads (grouped-query attention); divides n_head"},
        {"model.rope_theta", above(0), is(10000.0), "base of the rotary angles"},
        {"model.norm_eps", above(0), is(1e-5), "epsilon inside the root of RMSNorm"},
        {"model.tie_embeddings", boolean(), is(true), "embedding and head are one matrix"},
        {"model.init_std", above(0), is(0.02),
         "standard deviation of initial weights; o_proj and down_proj: / sqrt(2 n_layer)"},
        {"model.attention", one_of({"own"}, {"cudnn"}), is("own"), "implementation of attention"},
        {"model.recompute", one_of({"none"}, {"norm+swiglu", "block"}), is("none"),
         "activations to recompute in the backward pass"},

        {"init.from", text(), none(), "Hugging Face LLaMA folder to start the weights from"},
    };
}

std::vector<Key> data_and_step_keys() {
    return {
        {"data.train", texts(), required_by_train(),
         "token files or globs, from the working directory"},
        {"data.val", texts(), required_by_train(), "the same, for validation"},
        {"data.format", one_of({"auto", "llmc", "uint16"}), is("auto"),
         "llm.c shards or headerless uint16; auto looks for the header"},
        {"data.seed", integer(0), is(1337), "seed of the sample order"},
        {"data.tokenizer", text(), none(), "bytes, gpt2 or a file; needed for text only"},
        {"data.compat.order", one_of({"own", "numpy"}), is("own"),
         "published: numpy, the permutation and offset of numpy.random.default_rng(seed + epoch)"},

        {"batch.sequences", integer(1, kMaxExtent), required_by_train(),
         "sequences in an update, over all ranks and micro-batches"},
        {"batch.micro_batch", integer(1, kMaxExtent),
         computed("batch.sequences / ranks", same_as("batch.sequences").compute),
         "sequences that one rank computes at once; divides batch.sequences / ranks"},

        {"precision.compute", one_of({"auto", "bf16", "fp32", "fp64"}), is("auto"),
         "type of activations and GEMMs; auto: bf16 where the device is fast at it, else fp32; "
         "fp64 is for tests on the CPU"},
        {"precision.residual",
         one_of({"fp32", "bf16"}),
         is("fp32"),
         "type of the residual stream (fp64 computes it in fp64)",
         {"precision.compute", {"auto", "bf16", "fp32"}}},

        {"optimizer.preset", text(), none("required without groups"),
         "a preset built in from configs/optimizer, or the path of a preset file (looked for from "
         "the file that names it, then from the working directory); it replaces groups given "
         "earlier"},
        {"optimizer.groups", special("a list of parameter groups", is_group_list),
         none("from the preset"),
         "parameter groups, in place of the preset's; their keys are at the end of this page"},
        {"optimizer.lr", above(0), required(), "peak learning rate"},
        {"optimizer.weight_decay", at_least(0), is(0.0),
         "for groups that decay and do not say otherwise"},
        {"optimizer.clip_norm", at_least(0), is(0.0),
         "bound c of the global gradient norm: gradients times min(1, c / (norm + 1e-6)), as "
         "torch.nn.utils.clip_grad_norm_; 0: none"},
        {"optimizer.qkv", one_of({"fused", "split"}), is("fused"),
         "q, k, v as one matrix or as three in matrix norms"},
        {"optimizer.decay", one_of({"none", "decoupled", "constrained", "cautious", "start"}),
         none("as the groups say"),
         "decay of all groups, in place of their own; start: SODA around any preset"},
        {"optimizer.sampling.type", one_of({"all", "progressive", "subset", "periodic"}), is("all"),
         "layers that an update is of (a preset may say so): progressive: all from a random one on "
         "(Drop-Muon); subset: each at random; periodic: layer l where (update + l) mod period "
         "is 0. What belongs to no layer is always updated; the backward pass stops at the lowest"},
        {"optimizer.sampling.probability",
         above_to(0, 1),
         required(),
         "of each layer",
         {"optimizer.sampling.type", {"subset"}}},
        {"optimizer.sampling.period",
         integer(1, kMaxExtent),
         required(),
         "updates between two of a layer",
         {"optimizer.sampling.type", {"periodic"}}},
        {"optimizer.qk_clip", at_least(0), is(0.0),
         "QK-clip: query and key weights of a head whose largest attention score in the batch is "
         "above this are scaled down to it (a preset may say so); 0: none"},
        {"optimizer.compat.momentum_init", one_of({"zero", "parameters"}), is("zero"),
         "published for normalized SGD and Signum: parameters, heavy_ball and nesterov momenta "
         "start as the weights after their first decay"},
    };
}

std::vector<Key> schedule_keys() {
    const When ramp = {"schedule.warmup.type", {"linear", "cosine"}};
    const When any_warmup = {"schedule.warmup.type", {"linear", "cosine", "adaptive"}};
    const When adaptive = {"schedule.warmup.type", {"adaptive"}};
    const When falling = {"schedule.decay.type", {"cosine", "linear", "wsd", "gap"}};
    const When wsd = {"schedule.decay.type", {"wsd"}};
    return {
        {"schedule.warmup.type", one_of({"none", "linear", "cosine", "adaptive", "rates"}),
         is("none"),
         "how the rate rises; adaptive follows the loss and sets its own length; rates: as listed"},
        {"schedule.warmup.steps", integer(0), required(),
         "updates of the warm-up; 0 only with schedule.compat.onecycle", ramp},
        {"schedule.warmup.div", above(1), is(100.0), "the rate starts at lr / div", any_warmup},
        {"schedule.warmup.rates",
         special("a list of numbers > 0", is_rate_list),
         required(),
         "rate of each update of the warm-up, such as those of another run; the decay starts from "
         "the last of them",
         {"schedule.warmup.type", {"rates"}}},
        {"schedule.warmup.target_loss", at_least(0), required(),
         "loss that the run is hoped to reach; the gap delta is the loss above it", adaptive},
        {"schedule.warmup.delta_star",
         special("\"exact\", \"unweighted\", \"quadpack\", \"gk21\", \"measured\" or a number > 0",
                 is_gap),
         is("exact"),
         "gap at which the rate peaks; exact: by accurate quadrature; unweighted: a part of the "
         "first gap that depends on div alone; quadpack, gk21: as published; measured: where "
         "the fit of schedule.warmup.fit has it",
         adaptive},
        {"schedule.warmup.fit",
         text(),
         required(),
         "JSON file that `train_gpt smoothness --out` wrote for the same target_loss",
         {"schedule.warmup.delta_star", {"measured"}}},
        {"schedule.warmup.sigma_F", above(0), is(1e-3), "width of the weight in that quadrature",
         adaptive},
        {"schedule.warmup.loss_ema", from_below(0, 1), is(0.0),
         "smoothing of the loss: share of the old value; 0: none", adaptive},
        {"schedule.warmup.max_fraction", above_to(0, 1), is(0.5),
         "share of the run after which the warm-up ends anyway", adaptive},
        {"schedule.decay.type", one_of({"constant", "cosine", "linear", "wsd", "gap"}),
         is("constant"), "how the rate falls; gap keeps following eta of the gap (adaptive only)"},
        {"schedule.decay.final_div", at_least(1), is(1e4), "the rate ends at lr / final_div",
         falling},
        {"schedule.decay.fraction", above_to(0, 1), is(0.2), "last part of the run that decays",
         wsd},
        {"schedule.decay.shape", one_of({"linear", "cosine", "sqrt"}), is("linear"), "of that part",
         wsd},
    };
}

// Behaviours of the published code that are not our defaults; dev/docs/published.md says why.
std::vector<Key> schedule_compat_keys() {
    const When ramp = {"schedule.warmup.type", {"linear", "cosine"}};
    const When adaptive = {"schedule.warmup.type", {"adaptive"}};
    return {
        {"schedule.compat.first_lr", one_of({"start", "peak"}), is("start"),
         "published: peak, update 0 runs at lr instead of lr / div", adaptive},
        {"schedule.compat.lag", boolean(), is(false),
         "published: true, the rate comes from the loss of the update before", adaptive},
        {"schedule.compat.loss", one_of({"mean", "last_micro_batch"}), is("mean"),
         "published: last_micro_batch, its mean loss divided by the number of micro-batches",
         adaptive},
        {"schedule.compat.loss_source", one_of({"mean", "rank0", "local"}), is("mean"),
         "published: local, each rank by its own loss, so that their weights drift apart; rank0: "
         "the loss of rank 0's share of the batch",
         adaptive},
        {"schedule.compat.late_decay", boolean(), is(false),
         "published: true, a cosine or linear decay leaves out its first two points", adaptive},
        {"schedule.compat.onecycle", boolean(), is(false),
         "published: true, PyTorch's OneCycleLR: its ramp, and the floor lr / (div final_div)",
         ramp},
    };
}

std::vector<Key> output_keys() {
    return {
        {"eval.every", integer(0), is(0), "updates between evaluations; 0: at the end only"},
        {"eval.batches", integer(1), is(32),
         "micro-batches of an evaluation, as large as one rank would have them; always the same"},
        {"eval.sample", text(), none(), "prompt of a text sampled at each evaluation"},
        {"smoothness.every", integer(0), is(0),
         "updates between measurements of the smoothness (two more gradients each, and norms in "
         "fp64 on the CPU); 0: off"},
        {"smoothness.target_loss", at_least(0),
         computed("schedule.warmup.target_loss, or 0", warmup_target),
         "the gap of a measurement is the loss above it"},
        {"checkpoint.every", integer(0), is(0),
         "updates between checkpoints; 0: at the end only (the end is always saved)"},
        {"checkpoint.keep", integer(0, 1e6), is(2), "newest checkpoints to keep; 0: all"},
        {"log.every", integer(1), is(1), "updates between lines of metrics"},
        {"log.tensorboard", boolean(), is(true), "write TensorBoard events"},
        {"log.spike", at_least(0), is(6.0),
         "a loss is told as a spike when it is this many robust standard deviations above the "
         "median of the last 64 (nonfinite.md); 0: never"},
    };
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
        {"momentum.beta", share, required(),
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

const std::vector<Key>& config_keys() {
    static const std::vector<Key> keys = [] {
        std::vector<Key> all;
        for (const auto& section : {run_and_model_keys(), data_and_step_keys(), schedule_keys(),
                                    schedule_compat_keys(), output_keys()}) {
            all.insert(all.end(), section.begin(), section.end());
        }
        return all;
    }();
    return keys;
}

const std::vector<Key>& group_keys() {
    static const std::vector<Key> keys = make_group_keys();
    return keys;
}

}  // namespace lmo
