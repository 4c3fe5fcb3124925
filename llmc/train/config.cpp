// From the merged JSON tree to struct Config: the schema first, then what no single key can tell,
// then the fields.

#include "llmc/train/config.h"

#include <algorithm>
#include <cassert>
#include <filesystem>
#include <functional>

#include "llmc/core/error.h"
#include "llmc/train/config_optimizer.h"
#include "llmc/train/json_merge.h"
#include "llmc/train/named.h"
#include "llmc/train/schema_values.h"

namespace lmo {

namespace {

// Typed access to the resolved tree; a null gives the fallback.
struct Reader {
    const Json& tree;

    bool has(const std::string& path) const { return find_value(tree, path) != nullptr; }
    template <typename T>
    T get(const std::string& path, T fallback = {}) const {
        const Json* value = find_value(tree, path);
        return value == nullptr ? fallback : value->get<T>();
    }
    int64_t integer(const std::string& path) const { return get<int64_t>(path); }
    double number(const std::string& path) const { return get<double>(path); }
    std::string text(const std::string& path) const { return get<std::string>(path); }
};

using Refuse = std::function<void(const std::string& key, const std::string& expected)>;

// Published behaviours that other keys must fit.
void check_compat(const Reader& read, const Refuse& refuse) {
    const std::string warmup = read.text("schedule.warmup.type");
    const std::string decay = read.text("schedule.decay.type");
    const bool onecycle = read.get("schedule.compat.onecycle", false);
    if (onecycle && decay != warmup) {
        refuse("schedule.compat.onecycle", "schedule.decay.type = \"" + warmup +
                                               "\" with it, as the warm-up, not \"" + decay + "\"");
    }
    const int64_t steps = read.get<int64_t>("schedule.warmup.steps", 2);
    if (steps == 0 && !onecycle) {
        refuse("schedule.warmup.steps",
               "at least 1 (schedule.warmup.type = \"none\" is a run without a warm-up)");
    }
    if (read.get("schedule.compat.late_decay", false) && decay != "cosine" && decay != "linear") {
        refuse("schedule.compat.late_decay",
               "schedule.decay.type = \"cosine\" or \"linear\" with it, not \"" + decay + "\"");
    }
}

bool leads_out(const std::string& name) {
    const std::filesystem::path path(name);
    return std::find(path.begin(), path.end(), "..") != path.end();
}

// Conditions that tie several keys together.
void check_together(const Reader& read, const Provenance& origin) {
    const auto refuse = [&](const std::string& key, const std::string& expected) {
        reject(origin, key, *find_value(read.tree, key), expected);
    };
    const auto shown = [&](const std::string& key) {
        return key + " = " + value_text(*find_value(read.tree, key));
    };
    const int64_t width = read.integer("model.d_model"), heads = read.integer("model.n_head");
    const int64_t kv_heads = read.integer("model.n_kv_head");
    assert(width >= 1 && heads >= 1 && kv_heads >= 1);  // by the schema
    if (width % heads != 0) refuse("model.d_model", "a multiple of " + shown("model.n_head"));
    if (width / heads % 2 != 0) {
        refuse("model.d_model", "an even head size, as RoPE turns pairs, not d_model / n_head = " +
                                    std::to_string(width / heads));
    }
    if (heads % kv_heads != 0) {
        refuse("model.n_kv_head", "a divisor of " + shown("model.n_head"));
    }
    const std::string name = read.text("run.name");
    if (read.text("run.dir") == "runs/" + name && leads_out(name)) {
        refuse("run.name", "a name without \"..\", as run.dir is runs/NAME, or a run.dir with it");
    }
    if (read.has("batch.sequences")) {
        const int64_t micro_batch = read.integer("batch.micro_batch");
        assert(micro_batch >= 1);  // by the schema
        if (read.integer("batch.sequences") % micro_batch != 0) {
            refuse("batch.micro_batch", "a divisor of " + shown("batch.sequences"));
        }
    }
    if (read.has("schedule.warmup.steps") && read.has("run.steps") &&
        read.integer("schedule.warmup.steps") > read.integer("run.steps")) {
        refuse("schedule.warmup.steps", "at most " + shown("run.steps"));
    }
    if (read.has("schedule.warmup.rates") && read.has("run.steps") &&
        static_cast<int64_t>(find_value(read.tree, "schedule.warmup.rates")->size()) >
            read.integer("run.steps")) {
        refuse("schedule.warmup.rates", "at most one for each update, " + shown("run.steps"));
    }
    check_compat(read, refuse);
    if (read.text("schedule.decay.type") == "gap" &&
        read.text("schedule.warmup.type") != "adaptive") {
        refuse("schedule.decay.type",
               "schedule.warmup.type = \"adaptive\" with it (it follows the gap of that warm-up), "
               "not " +
                   shown("schedule.warmup.type"));
    }
    if (read.has("eval.sample") && !read.has("data.tokenizer")) {
        refuse("eval.sample", "data.tokenizer with it, to turn tokens into text");
    }
}

void read_run(Config& config, const Reader& read) {
    config.run = {read.text("run.name"),
                  read.text("run.dir"),
                  read.text("run.device"),
                  read.get<uint64_t>("run.seed"),
                  read.integer("run.steps"),
                  read.get<int>("run.threads"),
                  OnNonfinite::stop,
                  read.get<int64_t>("run.nonfinite_limit"),
                  read.number("run.rank_timeout"),
                  read.get<bool>("run.graphs"),
                  read.get<bool>("run.dependent_launch"),
                  read.get<bool>("run.overlap"),
                  read.number("run.bucket_mb")};
    config.run.on_nonfinite =
        named<OnNonfinite>(read.text("run.on_nonfinite"), {{"stop", OnNonfinite::stop},
                                                           {"skip", OnNonfinite::skip},
                                                           {"rollback", OnNonfinite::rollback}});
    config.init_from = read.text("init.from");
    config.data.train = read.get<std::vector<std::string>>("data.train");
    config.data.val = read.get<std::vector<std::string>>("data.val");
    config.data.format =
        named<TokenFormat>(read.text("data.format"), {{"auto", TokenFormat::automatic},
                                                      {"llmc", TokenFormat::llmc},
                                                      {"uint16", TokenFormat::uint16}});
    config.data.seed = read.get<uint64_t>("data.seed");
    config.data.tokenizer = read.text("data.tokenizer");
    config.data.order = named<OrderType>(read.text("data.compat.order"),
                                         {{"own", OrderType::own}, {"numpy", OrderType::numpy}});
    const int64_t micro_batch = read.integer("batch.micro_batch");
    config.batch = {read.integer("batch.sequences"), micro_batch, micro_batch, false};
    config.compute =
        named<ComputeChoice>(read.text("precision.compute"), {{"auto", ComputeChoice::automatic},
                                                              {"fp64", ComputeChoice::fp64},
                                                              {"fp32", ComputeChoice::fp32},
                                                              {"bf16", ComputeChoice::bf16}});
    config.residual = config.compute == ComputeChoice::fp64
                          ? DType::f64
                          : named<DType>(read.text("precision.residual"),
                                         {{"fp32", DType::f32}, {"bf16", DType::bf16}});
    config.split_master = read.get<std::string>("precision.master", "fp32") == "split";
}

void read_model(LlamaConfig& model, const Reader& read) {
    model.n_layer = read.integer("model.n_layer");
    model.n_head = read.integer("model.n_head");
    model.n_kv_head = read.integer("model.n_kv_head");
    model.d_model = read.integer("model.d_model");
    model.d_ff = read.integer("model.d_ff");
    model.vocab_size = read.integer("model.vocab_size");
    model.seq_len = read.integer("model.seq_len");
    model.rope_theta = read.number("model.rope_theta");
    model.norm_eps = read.number("model.norm_eps");
    model.init_std = read.number("model.init_std");
    model.tie_embeddings = read.get<bool>("model.tie_embeddings");
    model.library_attention = read.text("model.attention") == "cudnn";
    model.recompute = named<Recompute>(read.text("model.recompute"),
                                       {{"none", Recompute::none},
                                        {"norm+swiglu", Recompute::norm_swiglu},
                                        {"block", Recompute::block}});
}

// A key that the chosen types do not use keeps the default of its struct.
void read_schedule(ScheduleConfig& schedule, const Reader& read) {
    schedule.lr = read.number("optimizer.lr");
    schedule.steps = read.integer("run.steps");
    WarmupConfig& warmup = schedule.warmup;
    warmup.type =
        named<WarmupType>(read.text("schedule.warmup.type"), {{"none", WarmupType::none},
                                                              {"linear", WarmupType::linear},
                                                              {"cosine", WarmupType::cosine},
                                                              {"adaptive", WarmupType::adaptive},
                                                              {"rates", WarmupType::rates}});
    warmup.steps = read.get("schedule.warmup.steps", warmup.steps);
    warmup.div = read.get("schedule.warmup.div", warmup.div);
    warmup.rates = read.get("schedule.warmup.rates", warmup.rates);
    if (warmup.type == WarmupType::adaptive) {
        warmup.target_loss = read.number("schedule.warmup.target_loss");
        const Json& delta_star = *find_value(read.tree, "schedule.warmup.delta_star");
        if (delta_star.is_number() || delta_star == "measured") {
            warmup.delta_star_mode = DeltaStarMode::given;
            if (delta_star.is_number()) warmup.delta_star = delta_star;
        } else {
            warmup.delta_star_mode =
                named<DeltaStarMode>(delta_star, {{"exact", DeltaStarMode::exact},
                                                  {"unweighted", DeltaStarMode::unweighted},
                                                  {"quadpack", DeltaStarMode::quadpack},
                                                  {"gk21", DeltaStarMode::gk21}});
        }
        warmup.sigma_F = read.number("schedule.warmup.sigma_F");
        warmup.loss_ema = read.number("schedule.warmup.loss_ema");
        warmup.max_fraction = read.number("schedule.warmup.max_fraction");
    }
    LrDecayConfig& decay = schedule.decay;
    decay.type =
        named<LrDecayType>(read.text("schedule.decay.type"), {{"constant", LrDecayType::constant},
                                                              {"cosine", LrDecayType::cosine},
                                                              {"linear", LrDecayType::linear},
                                                              {"wsd", LrDecayType::wsd},
                                                              {"gap", LrDecayType::gap},
                                                              {"power", LrDecayType::power}});
    if (decay.type == LrDecayType::power) {
        decay.power = *schema::power_of(*find_value(read.tree, "schedule.decay.power"));
    }
    decay.final_div = read.get("schedule.decay.final_div", decay.final_div);
    decay.fraction = read.get("schedule.decay.fraction", decay.fraction);
    decay.shape = named<WsdShape>(
        read.get<std::string>("schedule.decay.shape", "linear"),
        {{"linear", WsdShape::linear}, {"cosine", WsdShape::cosine}, {"sqrt", WsdShape::sqrt}});
    ScheduleCompat& compat = schedule.compat;
    const std::string start = "start", mean = "mean";
    compat.first_peak = read.get("schedule.compat.first_lr", start) == "peak";
    compat.lag = read.get("schedule.compat.lag", false);
    compat.last_micro_batch = read.get("schedule.compat.loss", mean) == "last_micro_batch";
    const std::string source = read.get("schedule.compat.loss_source", mean);
    compat.rank0 = source == "rank0";
    compat.local = source == "local";
    compat.late_decay = read.get("schedule.compat.late_decay", false);
    compat.onecycle = read.get("schedule.compat.onecycle", false);
}

void read_outputs(Config& config, const Reader& read) {
    config.eval.every = read.integer("eval.every");
    config.eval.batches = read.integer("eval.batches");
    if (read.has("eval.sample")) config.eval.sample = read.text("eval.sample");
    config.smoothness = {read.integer("smoothness.every"), read.number("smoothness.target_loss")};
    config.checkpoint = {read.integer("checkpoint.every"), read.get<int>("checkpoint.keep")};
    config.log = {read.integer("log.every"), read.get<bool>("log.tensorboard"),
                  read.number("log.spike"), read.get<bool>("log.update_norms"),
                  read.number("log.peak_tflops")};
}

// What clears or scales the gradients does not go with momentum that lives in them.
void require_kept_gradients(const Reader& read, const Provenance& origin) {
    const std::string why = ", as a group's momentum.type is \"gradient\"";
    if (read.number("optimizer.clip_norm") != 0.0) {
        reject(origin, "optimizer.clip_norm", read.number("optimizer.clip_norm"), "0" + why);
    }
    const std::string sampling = read.text("optimizer.sampling.type");
    if (sampling == "subset" || sampling == "periodic") {
        // Layers that rest above the lowest chosen one would add their gradients to their momentum.
        reject(origin, "optimizer.sampling.type", sampling, "\"all\" or \"progressive\"" + why);
    }
    if (read.text("run.on_nonfinite") == "skip") {
        reject(origin, "run.on_nonfinite", "skip", "\"stop\" or \"rollback\"" + why);
    }
    if (read.integer("smoothness.every") != 0) {
        reject(origin, "smoothness.every", read.integer("smoothness.every"), "0" + why);
    }
    if (read.has("schedule.compat.loss_source") &&
        read.text("schedule.compat.loss_source") == "local") {
        reject(origin, "schedule.compat.loss_source", "local", "\"mean\" or \"rank0\"" + why);
    }
}

Config make_config(Json given, const Provenance& origin, ConfigUse use) {
    add_preset_settings(given, origin);
    Resolution resolution = resolve(config_keys(), given, origin, "", use == ConfigUse::train);
    const Reader read{resolution.values};
    if (!read.has("optimizer.preset") && !read.has("optimizer.groups")) {
        resolution.missing.push_back("optimizer.preset or optimizer.groups");
    }
    if (!resolution.missing.empty()) reject_missing(origin.main, resolution.missing);
    check_together(read, origin);

    Config config{};
    read_run(config, read);
    config.batch.micro_batch_given = find_value(given, "batch.micro_batch") != nullptr;
    read_model(config.model, read);
    read_schedule(config.schedule, read);
    config.smoothness_fit = read.get<std::string>("schedule.warmup.fit");
    read_outputs(config, read);
    config.optimizer = read_optimizer(resolution.values, origin);
    config.communication = read_communication(resolution.values);
    require_stages(resolution.values, config.optimizer, config.communication, origin);
    config.model.head_maxima = config.optimizer.qk_clip > 0.0;
    if (config.model.head_maxima && config.model.library_attention) {
        reject(origin, "model.attention", "cudnn",
               "\"own\", as optimizer.qk_clip needs the largest scores, which cuDNN does not tell");
    }
    if (config.optimizer.keeps_gradients()) require_kept_gradients(read, origin);
    if (config.optimizer.sampling.type != LayerSamplingType::all && config.smoothness.every > 0) {
        // It needs all gradients, which the update would then be clipped by.
        reject(origin, "smoothness.every", config.smoothness.every,
               "0, as optimizer.sampling.type is not \"all\"");
    }
    config.resolved = std::move(resolution.values);
    return config;
}

bool may_change(const std::string& path) {
    for (const char* key :
         {"run.dir", "run.name", "run.note", "run.device", "run.on_nonfinite",
          "run.nonfinite_limit", "run.rank_timeout", "run.graphs", "run.dependent_launch",
          "run.overlap", "run.bucket_mb", "model.attention", "model.recompute", "precision.master",
          "log", "eval", "smoothness", "checkpoint"}) {
        if (path == key) return true;
    }
    return path == "optimizer.preset";  // a label: the groups are compared
}

void add_conflicts(const Json& saved, const Json& now, const std::string& path, bool resume,
                   std::vector<std::string>& conflicts) {
    if (resume && may_change(path)) return;
    if (saved.is_object() && now.is_object()) {
        Json keys = saved;
        keys.update(now);
        for (const auto& [key, unused] : keys.items()) {
            (void)unused;
            add_conflicts(saved.value(key, Json()), now.value(key, Json()),
                          path.empty() ? key : path + "." + key, resume, conflicts);
        }
    } else if (saved.is_array() && now.is_array() && saved.size() == now.size()) {
        for (size_t i = 0; i < saved.size(); ++i) {
            add_conflicts(saved[i], now[i], path + "[" + std::to_string(i) + "]", resume,
                          conflicts);
        }
    } else if (saved != now) {
        conflicts.push_back(path + ": " + (saved.is_null() ? "none" : value_text(saved)) + " -> " +
                            (now.is_null() ? "none" : value_text(now)));
    }
}

}  // namespace

Config load_config(const std::string& path, const std::vector<std::string>& overrides,
                   ConfigUse use) {
    ConfigTree tree = merge_config(path, overrides);
    if (use == ConfigUse::model) tree.values["optimizer"] = {{"preset", "adamw"}, {"lr", 1.0}};
    return make_config(tree.values, tree.origin, use);
}

Config config_from_json(const Json& json, const std::string& source, ConfigUse use) {
    if (!json.is_object()) {
        throw UsageError(source + ": " + value_text(json) + ": expected a configuration object");
    }
    return make_config(json, Provenance{source, {}}, use);
}

std::vector<std::string> resume_conflicts(const Json& saved, const Json& now) {
    std::vector<std::string> conflicts;
    add_conflicts(saved, now, "", true, conflicts);
    return conflicts;
}

std::vector<std::string> config_differences(const Json& one, const Json& other) {
    std::vector<std::string> differences;
    add_conflicts(one, other, "", false, differences);
    return differences;
}

void cut_over_ranks(Config& config, int ranks) {
    Config::Batch& batch = config.batch;
    const std::string over = std::to_string(ranks) + (ranks == 1 ? " rank" : " ranks");
    if (ranks_drift(config, ranks)) {
        const std::string local = "schedule.compat.loss_source = \"local\" on " + over +
                                  ", whose weights drift apart: expected ";
        if (config.run.on_nonfinite != OnNonfinite::stop) {
            throw UsageError(local + "run.on_nonfinite = \"stop\"");
        }
        if (config.smoothness.every > 0) throw UsageError(local + "smoothness.every = 0");
    }
    // The smallest batch there is; it divides the others.
    const bool page = config.optimizer.estimator.type == EstimatorType::page;
    const std::string key = page ? "optimizer.estimator.small" : "batch.sequences";
    const int64_t sequences = page ? config.optimizer.estimator.small : batch.sequences;
    if (sequences % ranks != 0) {
        throw UsageError(key + " = " + std::to_string(sequences) + ": expected a multiple of " +
                         over + ", which share every batch");
    }
    const int64_t share = sequences / ranks;
    if (!batch.micro_batch_given) batch.micro_batch = share;
    if (share % batch.micro_batch != 0) {
        throw UsageError("batch.micro_batch = " + std::to_string(batch.micro_batch) +
                         ": expected a divisor of " + std::to_string(share) + ", the " + key +
                         " = " + std::to_string(sequences) + " over " +
                         over + "; leave it out, or set it to " + std::to_string(share));
    }
    set_value(config.resolved, "batch.micro_batch", batch.micro_batch);
}

}  // namespace lmo
