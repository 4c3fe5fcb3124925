// Where a run starts from, and what it says about itself first.
#pragma once

#include <string>

#include "llmc/io/console.h"
#include "llmc/train/config.h"
#include "llmc/train/device.h"

namespace lmo {

// The checkpoint folder to continue from, or "" for a fresh start. Refuses (UsageError) a used run
// folder with "never", a folder that holds none, and a configuration that differs from the saved
// one; on another number of ranks batch.micro_batch and run.threads may differ.
std::string find_checkpoint(const Config& config, const std::string& resume, int ranks = 1);

// Lines of that summary, without their headings.
std::string model_line(const Config& config, const ParameterList& parameters,
                       const ModelPrecision& precision);
std::string schedule_line(const Config& config);
std::string memory_line(const Arena& arena);

void print_run_summary(Console& console, const Config& config, const Backend& backend,
                       const Arena& arena, const ParameterList& parameters,
                       const ModelPrecision& precision, const Dataset& train_set,
                       const Dataset& validation_set);

}  // namespace lmo
