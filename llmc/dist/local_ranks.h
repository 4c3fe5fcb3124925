// Ranks that the program starts by itself, all on this machine.
#pragma once

#include <optional>

#include "llmc/core/error.h"

namespace lmo {

// Splits the process: `count` children return nothing, each with its place in the environment
// (find_place() finds it). The parent stays here, hands SIGINT, SIGTERM and SIGHUP on to the ranks,
// and returns when all have ended: the status of rank 0, or runtime_error where another one failed
// alone. Before any thread is started. Throws Error where there is no process to be had.
std::optional<ExitStatus> start_local_ranks(int count);

}  // namespace lmo
