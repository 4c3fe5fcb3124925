// What several ranks agree on before they train.
#pragma once

#include <memory>

#include "llmc/device/backend.h"
#include "llmc/dist/ranks.h"
#include "llmc/train/config.h"

namespace lmo {

// Throws UsageError where a rank was given another configuration than rank 0, naming its keys.
void require_same_on_all(const Config& config, Ranks& ranks);

// The backend of this rank. run.threads = 0: the cores that this process may use, shared with the
// ranks that may use the same ones, and as many on all ranks. On GPUs each rank has one of its own.
// Throws UsageError where they are too few, RanksFailed where two ranks see the same one, or
// devices of different kinds.
std::unique_ptr<Backend> make_rank_backend(const Config& config, Ranks& ranks);

// FNV-1a of some bytes, after what `start` is the fingerprint of.
constexpr uint64_t kFingerprintStart = 0xcbf29ce484222325ull;
uint64_t fingerprint(const void* data, size_t bytes, uint64_t start = kFingerprintStart);
uint64_t fingerprint(const std::string& text);
// NaNs are all alike.
uint64_t fingerprint(const std::vector<double>& values, uint64_t start = kFingerprintStart);

}  // namespace lmo
