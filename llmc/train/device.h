// Choosing a device, its precision, and whether a model fits into its memory.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "llmc/device/arena.h"
#include "llmc/model/llama.h"
#include "llmc/train/config.h"

namespace lmo {

// "auto", "cpu" or "cuda". Throws UsageError for a device that this build or machine does not have,
// and where there are fewer GPUs than ranks.
std::unique_ptr<Backend> make_backend(const std::string& device, int threads,
                                      const LocalRank& rank = {});

// Throws UsageError, which begins with `where`, when Newton-Schulz cannot work in this type here.
void require_newton_schulz(const Backend& backend, DType inner, const std::string& where);

// As run.dependent_launch says. Throws UsageError where the device cannot.
void set_launches(const Config& config, Backend& backend);

ModelPrecision choose_precision(const Config& config, const Backend& backend);

// Throws UsageError where this backend does not have the attention of model.attention.
void require_attention(const LlamaConfig& config, const ModelPrecision& precision,
                       const Backend& backend);

// Counts in `plan` what a run takes on this backend, with the code that takes it. `update` takes
// what an update needs beside weights and gradients (stages.h); without it nothing is trained.
// Sequences have config.seq_len tokens, `batch` at a time. Throws an Error for sizes beyond all
// memories.
using TakeMemory = std::function<void(Arena&)>;
void plan_memory(Backend& backend, Arena& plan, const LlamaConfig& config,
                 const ModelPrecision& precision, int64_t batch, const TakeMemory& update);

// Throws an Error where a model needs more memory than the machine has free, before anything is
// allocated: Linux promises memory that it does not have and later kills who uses it. Arguments
// as above.
void require_memory(Backend& backend, const LlamaConfig& config, const ModelPrecision& precision,
                    int64_t batch, const TakeMemory& update);

}  // namespace lmo
