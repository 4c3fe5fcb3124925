// What the data files of a run hold, so that a resumed run notices when they hold something else.
//
// state.json carries, for data.train and for data.val,
//   {"sampled": false, "files": [{"path": "a.bin", "bytes": 8000, "xxh3_128": "..."}, ...]}
// A set of up to 1 GiB is hashed whole (`xxh128sum` prints the same). Of a larger one the first and
// last 64 KiB of each file and blocks of 4 KiB at even distances, about 4096 over the set and at
// least 16 in a file, are hashed, so that a run starts soon: other data is noticed, but a change
// that lies between the blocks is not.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "llmc/data/dataset.h"

namespace lmo {

// `whole_up_to`: bytes of the set up to which it is hashed whole. Throws Error where a file cannot
// be read.
nlohmann::ordered_json data_fingerprint(const Dataset& set, int64_t whole_up_to = 1 << 30);

// Throws Error naming the first file that differs from what `checkpoint` was trained with. Files
// are compared in order; their names may change.
void require_same_data(const std::string& key, const nlohmann::ordered_json& saved,
                       const nlohmann::ordered_json& now, const std::string& checkpoint);

}  // namespace lmo
