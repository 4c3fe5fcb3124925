#include "llmc/train/resume.h"

#include <filesystem>
#include <map>

#include "llmc/core/error.h"
#include "llmc/core/json.h"
#include "llmc/core/text.h"
#include "llmc/data/tokenizer.h"
#include "llmc/io/checkpoint.h"
#include "llmc/train/json_merge.h"
#include "llmc/train/run_state.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

// `resume` names a checkpoint folder, or a run folder whose newest checkpoint is meant.
std::string given_checkpoint(const std::string& folder) {
    std::error_code ignored;  // what cannot be examined is no checkpoint
    if (!std::filesystem::is_directory(folder, ignored)) {
        throw UsageError("--resume " + folder +
                         ": no such folder; expected auto, never, a checkpoint "
                         "folder or a run folder");
    }
    std::string reason;
    if (std::filesystem::exists(folder + "/checkpoints", ignored)) {
        std::vector<std::string> warnings;
        if (const auto newest = newest_checkpoint(folder, &warnings)) return *newest;
        reason = warnings.empty() ? "it holds no checkpoint" : warnings.back();
    } else if (checkpoint_is_valid(folder, &reason)) {
        return folder;
    }
    throw UsageError("--resume " + folder + ": " + reason);
}

void require_same_config(const Config& config, const std::string& checkpoint, int ranks) {
    const ordered_json state = saved_state(checkpoint);
    if (!state.is_object() || !state.contains("config") || !state["config"].is_object()) {
        throw Error(checkpoint +
                    "/state.json: key \"config\" is missing; this is no checkpoint of "
                    "a run");
    }
    const ordered_json format = state.value("format", ordered_json());
    if (format != 1) {
        throw Error(checkpoint + "/state.json is of format " + value_text(format) +
                    ", this program knows 1");
    }
    // Keys that are newer than the checkpoint get their defaults.
    const Config saved =
        config_from_json(state["config"], checkpoint + "/state.json", ConfigUse::train);
    ordered_json then = saved.resolved;
    // Another number of ranks rounds sums in another order anyway.
    if (state.value("ranks", ordered_json(1)) != ranks) {
        for (const char* key : {"batch.micro_batch", "run.threads"}) {
            set_value(then, key, *find_value(config.resolved, key));
        }
    }
    const auto conflicts = resume_conflicts(then, config.resolved);
    if (conflicts.empty()) return;
    std::string text =
        "the configuration differs from the one that " + checkpoint + " was trained with:";
    for (const std::string& conflict : conflicts) text += "\n  " + conflict;
    throw UsageError(text + "\nset these keys back to continue, or choose another run.dir");
}

}  // namespace

std::string find_checkpoint(const Config& config, const std::string& resume, int ranks) {
    std::string checkpoint;
    if (resume == "never") {
        if (run_folder_is_used(config.run.dir)) {
            throw UsageError("--resume never: " + config.run.dir +
                             " holds a run already; choose "
                             "another run.dir, or remove the folder");
        }
    } else if (resume != "auto") {
        checkpoint = given_checkpoint(resume);
    } else {
        std::vector<std::string> warnings;
        if (const auto newest = newest_checkpoint(config.run.dir, &warnings)) checkpoint = *newest;
        for (const std::string& warning : warnings) {
            std::fprintf(stderr, "warning: %s\n", printable(warning).c_str());
        }
        if (checkpoint.empty() && !warnings.empty()) {
            throw Error(config.run.dir +
                        ": no complete checkpoint is left to continue from; move the "
                        "folder away to start afresh");
        }
    }
    if (!checkpoint.empty()) require_same_config(config, checkpoint, ranks);
    return checkpoint;
}

namespace {

std::string data_line(const Dataset& set) {
    return format_count(static_cast<double>(set.tokens())) + " tokens";
}

}  // namespace

std::string model_line(const Config& config, const ParameterList& parameters,
                       const ModelPrecision& precision) {
    const LlamaConfig& m = config.model;
    return "LLaMA, " + format_count(static_cast<double>(parameters.count())) +
           " parameters: " + std::to_string(m.n_layer) + " layers, width " +
           std::to_string(m.d_model) + ", " + std::to_string(m.n_head) + " heads, " +
           to_string(precision.compute);
}

std::string memory_line(const Arena& arena) {
    std::string text = format_bytes(static_cast<double>(arena.total())) + ":";
    std::map<std::string, size_t> whole;  // "activations" of all "activations/..."
    for (const auto& [part, bytes] : arena.parts()) whole[part.substr(0, part.find('/'))] += bytes;
    const char* separator = " ";
    for (const auto& [part, bytes] : whole) {
        text += separator + part + " " + format_bytes(static_cast<double>(bytes));
        separator = ", ";
    }
    return text;
}

std::string schedule_line(const Config& config) {
    const ordered_json& optimizer = config.resolved["optimizer"];
    const ordered_json& schedule = config.resolved["schedule"];
    std::string name = optimizer.contains("preset") && optimizer["preset"].is_string()
                           ? optimizer["preset"].get<std::string>()
                           : "own groups";
    std::string text = name + ", lr " + optimizer["lr"].dump() + ", warm-up " +
                       schedule["warmup"]["type"].get<std::string>();
    if (config.schedule.warmup.type == WarmupType::adaptive) {
        text += " (target loss " + schedule["warmup"]["target_loss"].dump() + ")";
    }
    return text + ", decay " + schedule["decay"]["type"].get<std::string>();
}

void print_run_summary(Console& console, const Config& config, const Backend& backend,
                       const Arena& arena, const ParameterList& parameters,
                       const ModelPrecision& precision, const Dataset& train_set,
                       const Dataset& validation_set) {
    const LlamaConfig& m = config.model;
    const double tokens = static_cast<double>(config.run.steps) *
                          static_cast<double>(config.batch.sequences * m.seq_len);
    const double epochs = static_cast<double>(config.run.steps) *
                          static_cast<double>(config.batch.sequences) /
                          static_cast<double>(train_set.sequences());
    char epochs_text[32];
    std::snprintf(epochs_text, sizeof epochs_text, "%.2f", epochs);
    console.message("run        " + config.run.name + " in " + config.run.dir);
    console.message("device     " + backend.describe());
    console.message("model      " + model_line(config, parameters, precision));
    console.message("data       " + data_line(train_set) + " to train on, " +
                    data_line(validation_set) + " to validate");
    console.message("training   " + std::to_string(config.run.steps) + " updates of " +
                    std::to_string(config.batch.sequences) + " x " + std::to_string(m.seq_len) +
                    " tokens: " + format_count(tokens) + " tokens, " + epochs_text + " epochs");
    console.message("optimizer  " + schedule_line(config));
    console.message("memory     " + memory_line(arena));
}

}  // namespace lmo
