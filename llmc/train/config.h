// The configuration of a run: JSON files that include one another, --set overrides, one schema.
//
// Merging: `include` (a path or a list, relative to the including file) comes first, then the
// file's own keys, then each --set; objects merge key by key, a later value wins, null deletes a
// key, --set with an object replaces it whole. An unknown key, or one that the chosen type does not
// use, is an error that names the nearest known key; every error names file, key, value and what
// was expected.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "llmc/data/dataset.h"
#include "llmc/data/order.h"
#include "llmc/model/llama.h"
#include "llmc/optim/config.h"
#include "llmc/schedule/schedule.h"
#include "llmc/train/config_stages.h"
#include "llmc/train/left_out.h"

namespace lmo {

enum class ComputeChoice { automatic, fp64, fp32, bf16 };

struct Config {
    struct Run {
        std::string name, dir, device;
        uint64_t seed;
        int64_t steps;  // 0: not given
        int threads;    // 0: all cores
        OnNonfinite on_nonfinite;
        int64_t nonfinite_limit;  // skip, rollback
        double rank_timeout;      // seconds
        bool graphs, dependent_launch;
        bool overlap;
        double bucket_mb;
    } run;
    LlamaConfig model;
    std::string init_from;  // empty: random
    struct Data {
        std::vector<std::string> train, val;
        TokenFormat format;
        uint64_t seed;
        OrderType order;
        std::string tokenizer;  // empty: none
    } data;
    // As one rank has it; cut_over_ranks changes micro_batch alone.
    struct Batch {
        int64_t sequences, micro_batch;
        int64_t one_rank_micro_batch;  // unit of evaluations, and of epochs in the numpy order
        bool micro_batch_given;
    } batch;
    ComputeChoice compute;
    DType residual;  // fp32 or bf16; fp64 when compute is fp64
    bool split_master;
    OptimizerConfig optimizer;
    CommunicationConfig communication;
    ScheduleConfig schedule;     // with_measured_gap completes it
    std::string smoothness_fit;  // file that delta_star "measured" is read from; empty: none
    struct Eval {
        int64_t every, batches;
        std::optional<std::string> sample;  // prompt of a text sampled at each evaluation
    } eval;
    struct Smoothness {
        int64_t every;
        double target_loss;
    } smoothness;
    struct Checkpoint {
        int64_t every;
        int keep;
    } checkpoint;
    struct Log {
        int64_t every;
        bool tensorboard;
        double spike;  // 0: off
        bool update_norms;
        double peak_tflops;  // of a rank; 0: measured
    } log;

    nlohmann::ordered_json
        resolved;  // every key with its value, defaults included; what
                   // run_config.json stores. The preset's groups are written out.
};

// Whether each rank follows its own loss (schedule.compat.loss_source "local"): rates and weights
// of their own, as published; nothing is sharded then.
inline bool ranks_drift(const Config& config, int ranks) {
    return ranks > 1 && config.schedule.compat.local;
}
// Whether ranks take their updates alone and meet now and then (optimizer.communication.type
// "local").
inline bool ranks_work_alone(const Config& config, int ranks) {
    return ranks > 1 && config.communication.type == CommunicationType::local;
}
// Whether every rank has the whole optimizer; else each has the states of its blocks.
inline bool optimizer_is_whole(const Config& config, int ranks) {
    return ranks == 1 || ranks_drift(config, ranks) || ranks_work_alone(config, ranks);
}

// Which keys a command cannot do without; for `model` the optimizer's are not read.
enum class ConfigUse { train, schedule, model };

// `overrides`: the texts of --set, "key.path=value" (the value is JSON, or else a string).
Config load_config(const std::string& path, const std::vector<std::string>& overrides,
                   ConfigUse use);
// The same from a resolved configuration (state.json of a checkpoint); `source` names it in errors.
Config config_from_json(const nlohmann::ordered_json& json, const std::string& source,
                        ConfigUse use);

// Each of `ranks` ranks computes a share of every batch: sets batch.micro_batch to sequences /
// ranks where it is not given. Throws UsageError naming the key where the batch cannot be cut so.
void cut_over_ranks(Config& config, int ranks);

// Keys whose values differ between two resolved configurations, "key: one -> other".
std::vector<std::string> config_differences(const nlohmann::ordered_json& one,
                                            const nlohmann::ordered_json& other);

// Keys whose values differ between two resolved configurations, "key: old -> new", leaving out
// those that a resumed run may change (run.dir, run.name, run.note, run.device, run.on_nonfinite,
// run.nonfinite_limit, run.rank_timeout, run.graphs, run.dependent_launch, run.overlap,
// run.bucket_mb, model.attention, model.recompute, precision.master, log, eval, smoothness,
// checkpoint).
std::vector<std::string> resume_conflicts(const nlohmann::ordered_json& saved,
                                          const nlohmann::ordered_json& now);

// The reference page in Markdown, generated from the schema.
std::string config_reference();

// Optimizer presets embedded at build time from configs/optimizer/: name and JSON text. Defined in
// a file that the Makefile generates.
struct EmbeddedPreset {
    const char* name;
    const char* json;
};
const std::vector<EmbeddedPreset>& embedded_presets();

}  // namespace lmo
