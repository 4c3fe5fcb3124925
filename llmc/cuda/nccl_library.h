// NCCL, loaded when ranks connect for the first time: the program starts, and trains with one rank,
// where it is not installed.
#pragma once

#include <string>

#include "llmc/cuda/nccl_api.h"

namespace lmo::cuda::nccl {

struct Library {
    GetVersion* get_version;
    GetUniqueId* get_unique_id;
    CommInitRankConfig* comm_init_rank_config;
    CommAbort* comm_abort;
    CommGetAsyncError* comm_get_async_error;
    GetErrorString* get_error_string;
    GetLastError* get_last_error;
    GroupStart* group_start;
    GroupEnd* group_end;
    AllReduce* all_reduce;
    Reduce* reduce;
    Broadcast* broadcast;
};

// Throws Error saying what to install where the library or one of its functions is missing.
const Library& library();

std::string version_text();  // "NCCL 2.28.9"

// Throws Error for what is neither success nor in progress; `communicator` may be null.
void check(Result result, Communicator* communicator, const std::string& doing);

}  // namespace lmo::cuda::nccl
