// A checkpoint folder: manifest.json and state.json from the input beside files that do not change.
// Accepted means: the manifest says of every file what is true.
#include "llmc/io/checkpoint.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "llmc/io/files.h"
#include "llmc/train/config.h"
#include "llmc/train/run_state.h"
#include "tests/fuzz/fuzz.h"

namespace lmo::fuzz {

namespace {

namespace fs = std::filesystem;

bool resumable(const std::string& folder) {
    bool good = false;
    accepts(
        [&] {
            const RunState state = read_run_state(folder);
            require(state.updates >= 0 && state.samples >= 0 && state.train_sequences >= 0,
                    "a negative count");
            good = true;
        },
        {folder + "/state.json"});
    accepts([&] { saved_tokenizer(folder); }, {folder + "/state.json"});
    accepts(
        [&] {
            const nlohmann::ordered_json state = saved_state(folder);
            if (!state.is_object() || !state.contains("config")) return;
            const Config config = config_from_json(state["config"], folder, ConfigUse::train);
            resume_conflicts(state["config"], config.resolved);
        },
        {folder});
    return good;
}

}  // namespace

bool checkpoint(std::string_view input) {
    const std::string run = scratch("run"), folder = run + "/checkpoints/step_00000008";
    const std::string inside = "run/checkpoints/step_00000008/";
    fs::create_directories(folder);
    auto files = split_files(input, "manifest.json", {"manifest.json", "state.json"});
    write(inside + "config.json", "{}\n");
    write(inside + "model.safetensors", "model");
    write(inside + "optimizer.safetensors", "");
    if (files.count("state.json") == 0) files["state.json"];
    for (const auto& [name, text] : files) write(inside + name, text);

    std::vector<std::string> warnings;
    const auto newest = newest_checkpoint(run, &warnings);
    std::string reason;
    require(checkpoint_is_valid(folder, &reason) == newest.has_value(), "two opinions");
    require(newest.has_value() == reason.empty() && warnings.size() == (newest ? 0u : 1u),
            "no reason given");
    if (newest) {
        const auto manifest = nlohmann::json::parse(files["manifest.json"]);
        for (const auto& [name, line] : manifest["files"].items()) {
            const FileSummary summary = summarize_file(folder + "/" + name);
            require(line["bytes"] == summary.bytes && line["xxh3_128"] == summary.xxh3_128,
                    "a manifest that is not true is taken");
        }
    }
    const bool good_state = resumable(folder);
    return newest.has_value() || good_state;
}

}  // namespace lmo::fuzz
