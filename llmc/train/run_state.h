// state.json of a checkpoint: what a run continues with, beside its tensors.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "llmc/schedule/schedule.h"

namespace lmo {

// A checkpoint's state.json, or null where there is none.
nlohmann::ordered_json saved_state(const std::string& checkpoint);

// What of it a run continues with.
struct RunState {
    ScheduleState schedule;
    int64_t updates = 0, samples = 0;  // done
    int64_t train_sequences = 0;       // in data.train
    nlohmann::ordered_json data;       // fingerprints by "train" and "val"; null: none there
    nlohmann::ordered_json spike;      // of SpikeDetector; null: none there
    nlohmann::ordered_json left_out;   // of LeftOut
    std::string compute;               // "fp32"
    int64_t ranks = 1;                 // that wrote it
    int64_t epoch_batch = 0;           // of SampleStream; 0: not there
};
// Throws Error naming file and key for what is missing, of another type or out of range.
RunState read_run_state(const std::string& checkpoint);

// The tokenizer that the checkpoint's run was configured with, or "".
std::string saved_tokenizer(const std::string& checkpoint);

}  // namespace lmo
