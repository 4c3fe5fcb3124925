#include "llmc/cuda/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>

#include "llmc/core/error.h"

namespace lmo::cuda::nccl {

namespace {

constexpr const char* kName = "libnccl.so.2";
constexpr int kOldest = 2 * 10000 + 14 * 100;

void* open_library() {
    // Rings add in an order that follows from the ranks and their connections alone; reductions in
    // a switch do not. It has to be said before the library reads its environment.
    ::setenv("NCCL_ALGO", "Ring", 0);
    void* const opened = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
    if (opened != nullptr) return opened;
    throw Error(std::string("NCCL: cannot load ") + kName + ": " + dlerror() +
                "; several GPUs train together by it: install NCCL (package libnccl2, or "
                "nvidia-nccl-cu" +
                std::to_string(CUDART_VERSION / 1000) +
                " of pip), or name its folder in LD_LIBRARY_PATH");
}

template <typename Function>
void find(void* opened, const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(opened, name));
    if (function != nullptr) return;
    throw Error(std::string("NCCL: ") + kName + " has no " + name +
                "; NCCL 2.14 or newer is needed");
}

std::string version_of(int version) {
    return "NCCL " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) +
           "." + std::to_string(version % 100);
}

Library load() {
    void* const opened = open_library();
    Library loaded{};
    find(opened, "ncclGetVersion", loaded.get_version);
    int version = 0;
    if (loaded.get_version(&version) != kSuccess || version < kOldest) {
        throw Error(version_of(version) + " is too old; 2.14 or newer is needed");
    }
    find(opened, "ncclGetUniqueId", loaded.get_unique_id);
    find(opened, "ncclCommInitRankConfig", loaded.comm_init_rank_config);
    find(opened, "ncclCommAbort", loaded.comm_abort);
    find(opened, "ncclCommGetAsyncError", loaded.comm_get_async_error);
    find(opened, "ncclGetErrorString", loaded.get_error_string);
    find(opened, "ncclGetLastError", loaded.get_last_error);
    find(opened, "ncclGroupStart", loaded.group_start);
    find(opened, "ncclGroupEnd", loaded.group_end);
    find(opened, "ncclAllReduce", loaded.all_reduce);
    find(opened, "ncclReduce", loaded.reduce);
    find(opened, "ncclBroadcast", loaded.broadcast);
    return loaded;
}

}  // namespace

const Library& library() {
    static const Library loaded = load();
    return loaded;
}

std::string version_text() {
    int version = 0;
    check(library().get_version(&version), nullptr, "asking for its version");
    return version_of(version);
}

void check(Result result, Communicator* communicator, const std::string& doing) {
    if (result == kSuccess || result == kInProgress) return;
    std::string text = "NCCL: " + doing + ": " + library().get_error_string(result);
    const char* const more = library().get_last_error(communicator);
    if (more != nullptr && *more != '\0') text += std::string(" (") + more + ")";
    throw Error(text + "; NCCL_DEBUG=WARN in the environment says more");
}

}  // namespace lmo::cuda::nccl
