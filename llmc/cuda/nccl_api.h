// What of NCCL's interface is used here, declared in our words: its header need not be there when
// the program is built, nor its library when it starts. From nccl.h of NCCL 2.14, which later
// versions keep compatible; tests/emulator/nccl_declarations.cpp compares them where that header
// exists. (NCCL 2.14 is the first that connects without blocking.)
#pragma once

#include <cuda_runtime_api.h>

#include <climits>
#include <cstddef>

namespace lmo::cuda::nccl {

enum Result : int {
    kSuccess = 0,
    kUnhandledCudaError,
    kSystemError,
    kInternalError,
    kInvalidArgument,
    kInvalidUsage,
    kRemoteError,
    kInProgress,  // a call of a communicator that does not block has not ended
};

enum DataType : int { kUint8 = 1, kFloat32 = 7, kFloat64 = 8 };
enum Operation : int { kSum = 0 };

struct UniqueId {
    char bytes[128];
};
struct Communicator;  // the library's

// ncclConfig_t as it began: the library reads as much of it as `size` says.
struct Config {
    size_t size = sizeof(Config);
    unsigned magic = 0xcafebeef;
    unsigned version = 2 * 10000 + 14 * 100;
    int blocking = INT_MIN;  // not said
};

extern "C" {
using GetVersion = Result(int* version);
using GetUniqueId = Result(UniqueId* id);
using CommInitRankConfig = Result(Communicator** made, int ranks, UniqueId id, int rank,
                                  Config* config);
using CommAbort = Result(Communicator* communicator);
using CommGetAsyncError = Result(Communicator* communicator, Result* state);
using GetErrorString = const char*(Result result);
using GetLastError = const char*(Communicator* communicator);
using GroupStart = Result();
using GroupEnd = Result();
using AllReduce = Result(const void* from, void* to, size_t count, DataType type,
                         Operation operation, Communicator* communicator, cudaStream_t stream);
using Reduce = Result(const void* from, void* to, size_t count, DataType type, Operation operation,
                      int root, Communicator* communicator, cudaStream_t stream);
using Broadcast = Result(const void* from, void* to, size_t count, DataType type, int root,
                         Communicator* communicator, cudaStream_t stream);
}

}  // namespace lmo::cuda::nccl
