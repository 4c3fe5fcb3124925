// A stand-in for NCCL between processes that run the CUDA emulator: libnccl.so.2 with the functions
// that llmc/cuda/nccl_library.h loads. Programs find it beside them (build/emulated/nccl).
//
// Ranks exchange their data through shared memory. Communicators never block, as ours: whoever does
// not ask for the state until it is success gets no results, and may not make another call. A rank
// that is gone is not noticed here. Sums are taken in the order of the ranks.
//
// LMO_NCCL_HANG=N, LMO_NCCL_FAIL=N: the Nth collective of this process never ends, which it says on
// stderr, or fails.
#include "dev/emulator/nccl/communicator.h"

#include <cstring>

using namespace standin;

namespace {

struct Group {
    int depth = 0;
    Communicator* communicator = nullptr;
    std::vector<Call> calls;
};

Group& group() {
    static Group the_group;
    return the_group;
}

Communicator& find(nccl::Communicator* handle) {
    return **reinterpret_cast<std::shared_ptr<Communicator>*>(handle);
}

nccl::Result end_group() {
    Group& own = group();
    if (own.calls.empty()) return nccl::kSuccess;
    return own.communicator->begin(std::move(own.calls));
}

nccl::Result add(nccl::Communicator* handle, const Call& call) {
    const bool adds = call.type == nccl::kFloat32 || call.type == nccl::kFloat64;
    const bool shares = call.type == nccl::kUint8 && call.kind == Kind::broadcast;
    if (!adds && !shares) return nccl::kInvalidArgument;
    Communicator& communicator = find(handle);
    if (!communicator.idle()) {
        last_error() = "stand-in: the call before this one has not ended";
        return nccl::kInvalidUsage;
    }
    Group& own = group();
    if (own.depth == 0) own.calls.clear();
    own.communicator = &communicator;
    own.calls.push_back(call);
    return own.depth == 0 ? end_group() : nccl::kSuccess;
}

}  // namespace

extern "C" {

nccl::Result ncclGetVersion(int* version) {
    *version = 29900;  // 2.99, which there is not
    return nccl::kSuccess;
}

nccl::Result ncclGetUniqueId(nccl::UniqueId* id) {
    const std::string name = new_name();
    if (name.empty()) return nccl::kSystemError;
    std::memset(id, 0, sizeof *id);
    name.copy(id->bytes, sizeof id->bytes - 1);
    return nccl::kSuccess;
}

nccl::Result ncclCommInitRankConfig(nccl::Communicator** made, int ranks, nccl::UniqueId id,
                                    int rank, nccl::Config* config) {
    const bool known = config->size == sizeof *config && config->magic == nccl::Config().magic;
    if (!known || ranks > kMostRanks || rank < 0 || rank >= ranks) return nccl::kInvalidArgument;
    if (config->blocking != 0) return nccl::kInvalidUsage;
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return nccl::kUnhandledCudaError;
    auto communicator = std::make_shared<Communicator>(id.bytes, ranks, rank, device);
    *made = reinterpret_cast<nccl::Communicator*>(new auto(std::move(communicator)));
    return nccl::kInProgress;
}

nccl::Result ncclCommAbort(nccl::Communicator* communicator) {
    delete reinterpret_cast<std::shared_ptr<Communicator>*>(communicator);
    return nccl::kSuccess;
}

nccl::Result ncclCommGetAsyncError(nccl::Communicator* communicator, nccl::Result* state) {
    *state = find(communicator).advance();
    return nccl::kSuccess;
}

const char* ncclGetErrorString(nccl::Result result) {
    constexpr const char* kTexts[] = {"no error",       "unhandled cuda error", "system error",
                                      "internal error", "invalid argument",     "invalid usage",
                                      "remote error",   "in progress"};
    return kTexts[result];
}

const char* ncclGetLastError(nccl::Communicator*) { return last_error().c_str(); }

nccl::Result ncclGroupStart() {
    Group& own = group();
    if (own.depth++ == 0) own.calls.clear();
    return nccl::kSuccess;
}

nccl::Result ncclGroupEnd() {
    if (group().depth == 0) return nccl::kInvalidUsage;
    return --group().depth == 0 ? end_group() : nccl::kSuccess;
}

nccl::Result ncclAllReduce(const void* from, void* to, size_t count, nccl::DataType type,
                           nccl::Operation, nccl::Communicator* communicator, cudaStream_t stream) {
    return add(communicator, {Kind::all_reduce, from, to, count, type, -1, stream});
}

nccl::Result ncclReduce(const void* from, void* to, size_t count, nccl::DataType type,
                        nccl::Operation, int root, nccl::Communicator* communicator,
                        cudaStream_t stream) {
    return add(communicator, {Kind::reduce, from, to, count, type, root, stream});
}

nccl::Result ncclBroadcast(const void* from, void* to, size_t count, nccl::DataType type, int root,
                           nccl::Communicator* communicator, cudaStream_t stream) {
    return add(communicator, {Kind::broadcast, from, to, count, type, root, stream});
}

}  // extern "C"

template <typename Declared, typename Defined>
constexpr bool same(Defined*) {
    return std::is_same_v<Declared, Defined>;
}
static_assert(same<nccl::CommInitRankConfig>(ncclCommInitRankConfig));
static_assert(same<nccl::AllReduce>(ncclAllReduce));
static_assert(same<nccl::Reduce>(ncclReduce));
static_assert(same<nccl::Broadcast>(ncclBroadcast));
