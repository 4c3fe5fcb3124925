// Checkpoint folders: checkpoints/step_00001000/ with model.safetensors, config.json (Hugging
// Face), optimizer.safetensors, state.json and, written last, manifest.json (size and XXH3-128 of
// each file; `xxh128sum` prints the same):
//   {"format": 1, "step": 1000, "files": {"config.json": {"bytes": 612, "xxh3_128": "..."}, ...}}
// A folder is written under a temporary name, synced, then renamed: what has a valid manifest is
// complete. A folder of the same step is moved to step_00001000.old until the new one is in place.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "llmc/io/safetensors.h"

namespace lmo {

struct CheckpointContents {
    std::vector<TensorSource> model;
    std::vector<TensorSource> optimizer;
    const nlohmann::json* model_config;  // config.json
    const nlohmann::json* state;         // state.json
};

// Saves under run_dir/checkpoints and then removes the oldest complete checkpoints beyond `keep`
// (0: keep all), never the one just saved; left-overs of a killed save go too. Throws Error (disk
// full, read-only, ...) leaving earlier checkpoints untouched and no temporary behind. What cannot
// be removed is named in `warnings`. Returns the folder.
std::string save_checkpoint(const std::string& run_dir, int64_t step,
                            const CheckpointContents& contents, int keep,
                            std::vector<std::string>* warnings = nullptr);

// Removes what a killed run left half-written in its folder; only for who holds the folder's lock.
// What cannot be removed is named in `warnings`.
void remove_temporaries(const std::string& run_dir, std::vector<std::string>* warnings);

// Does the folder have a manifest that every file agrees with? `reason` says why not.
bool checkpoint_is_valid(const std::string& folder, std::string* reason);

// The newest valid checkpoint of a run folder, of at most `last` updates; a broken one is named in
// `warnings` and passed over.
std::optional<std::string> newest_checkpoint(const std::string& run_dir,
                                             std::vector<std::string>* warnings,
                                             int64_t last = INT64_MAX);

// Has this run folder been used (metrics or checkpoints in it)?
bool run_folder_is_used(const std::string& run_dir);

}  // namespace lmo
