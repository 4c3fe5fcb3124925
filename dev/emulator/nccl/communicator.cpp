#include "dev/emulator/nccl/communicator.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "dev/emulator/runtime.h"

namespace standin {

namespace {

static_assert(std::atomic<uint64_t>::is_always_lock_free);

// The group at which LMO_NCCL_HANG or LMO_NCCL_FAIL says that it hangs or fails; 0: none.
uint64_t group_of(const char* variable) {
    const char* const value = std::getenv(variable);
    return value ? std::strtoull(value, nullptr, 10) : 0;
}

uint64_t fingerprint(const std::vector<Call>& calls) {
    uint64_t hash = 1;
    for (const Call& call : calls) {
        for (const uint64_t part :
             {static_cast<uint64_t>(call.kind), uint64_t{call.count},
              static_cast<uint64_t>(call.type), static_cast<uint64_t>(call.root)}) {
            hash = (hash ^ part) * 0x9E3779B97F4A7C15ull + 1;
        }
    }
    return hash;
}

// In the order of the ranks, each of whose values are at areas[rank].
template <typename T>
void add_up(const std::vector<const char*>& areas, size_t count, void* to) {
    for (size_t i = 0; i < count; ++i) {
        T sum = reinterpret_cast<const T*>(areas[0])[i];
        for (size_t r = 1; r < areas.size(); ++r) sum += reinterpret_cast<const T*>(areas[r])[i];
        static_cast<T*>(to)[i] = sum;
    }
}

nccl::Result refuse(nccl::Result result, const std::string& text) {
    last_error() = "stand-in: " + text;
    return result;
}

}  // namespace

std::string& last_error() {
    static std::string text;
    return text;
}

std::string new_name() {
    static int count = 0;
    const std::string name =
        "/lmo-nccl-" + std::to_string(::getpid()) + "-" + std::to_string(count++);
    const int file = ::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
    if (file < 0) return {};
    const bool sized = ::ftruncate(file, sizeof(Shared) + kMostRanks * kAreaBytes) == 0;
    ::close(file);
    return sized ? name : std::string();
}

Communicator::Communicator(const std::string& name, int ranks, int rank, int device)
    : name_(name), ranks_(ranks), rank_(rank), device_(device) {
    const int file = ::shm_open(name.c_str(), O_RDWR, 0600);
    if (file < 0) {
        state_ = refuse(nccl::kSystemError, "no shared memory " + name);
        return;
    }
    bytes_ = sizeof(Shared) + static_cast<size_t>(ranks) * kAreaBytes;
    void* const memory =
        ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    ::close(file);
    if (memory == MAP_FAILED) {
        state_ = refuse(nccl::kSystemError, "shared memory cannot be mapped");
        return;
    }
    shared_ = static_cast<Shared*>(memory);
    shared_->ranks[rank].device = device + 1;
}

Communicator::~Communicator() {
    if (rank_ == 0 && !connected_) ::shm_unlink(name_.c_str());
    if (shared_) ::munmap(shared_, bytes_);
}

char* Communicator::area(int rank) const {
    return reinterpret_cast<char*>(shared_ + 1) + static_cast<size_t>(rank) * kAreaBytes;
}

bool Communicator::all_have(std::atomic<uint64_t> RankState::*what, uint64_t group) const {
    for (int r = 0; r < ranks_; ++r) {
        if (shared_->ranks[r].*what < group) return false;
    }
    return true;
}

nccl::Result Communicator::begin(std::vector<Call> calls) {
    size_t bytes = 0;
    for (const Call& call : calls) bytes += call.gives(rank_) ? call.bytes() : 0;
    if (bytes > kAreaBytes) {
        return refuse(nccl::kInternalError, "more than 256 MiB in one group of calls");
    }
    calls_ = std::move(calls);
    ++group_;
    given_ = false;
    return state_ = nccl::kInProgress;
}

nccl::Result Communicator::advance_connecting() {
    for (int r = 0; r < ranks_; ++r) {
        const int device = shared_->ranks[r].device;
        if (device == 0) return nccl::kInProgress;
        if (r != rank_ && device == device_ + 1) {
            return refuse(nccl::kInvalidUsage, "two ranks have the same device");
        }
    }
    connected_ = true;
    if (rank_ == 0) ::shm_unlink(name_.c_str());
    return nccl::kSuccess;
}

nccl::Result Communicator::advance() {
    if (state_ != nccl::kInProgress) return state_;
    if (!connected_) return state_ = advance_connecting();
    if (group_ == group_of("LMO_NCCL_FAIL")) {
        return state_ = refuse(nccl::kSystemError, "told to fail");
    }
    if (!given_ && all_have(&RankState::taken, group_ - 1)) {
        give();
    } else if (!given_) {
        (void)cudaStreamQuery(calls_[0].stream);  // time passes: results of before are taken
    }
    if (!given_ || !all_have(&RankState::given, group_)) return state_;
    if (group_ == group_of("LMO_NCCL_HANG")) {
        if (!hangs_) std::fputs("stand-in: hangs\n", stderr);
        hangs_ = true;
        return state_;
    }
    for (int r = 0; r < ranks_; ++r) {
        if (shared_->ranks[r].calls != shared_->ranks[rank_].calls) {
            return state_ = refuse(nccl::kInternalError, "ranks call different collectives");
        }
    }
    take();
    return state_ = nccl::kSuccess;
}

// What is on the stream before runs first.
void Communicator::give() {
    char* to = area(rank_);
    for (const Call& call : calls_) {
        if (!call.gives(rank_)) continue;
        emulator::enqueue(call.stream, [call, to] {
            emulator::check_host_read(call.from, call.bytes(), "a collective of NCCL");
            std::memcpy(to, call.from, call.bytes());
        });
        to += call.bytes();
    }
    for (const Call& call : calls_) (void)cudaStreamSynchronize(call.stream);
    shared_->ranks[rank_].calls = fingerprint(calls_);
    shared_->ranks[rank_].given = group_;
    given_ = true;
}

void Communicator::take() {
    std::vector<const char*> areas;  // the next call's data of each rank
    for (int r = 0; r < ranks_; ++r) areas.push_back(area(r));
    cudaStream_t stream = nullptr;
    for (const Call& call : calls_) {
        stream = call.stream;
        if (call.takes(rank_)) {
            emulator::enqueue(stream, [self = shared_from_this(), call, areas] {
                emulator::mark_written(call.to, call.bytes(), "a collective of NCCL");
                if (call.kind == Kind::broadcast) {
                    const char* from = areas[static_cast<size_t>(call.root)];
                    std::memcpy(call.to, from, call.bytes());
                } else if (call.type == nccl::kFloat64) {
                    add_up<double>(areas, call.count, call.to);
                } else {
                    add_up<float>(areas, call.count, call.to);
                }
            });
        }
        for (int r = 0; r < ranks_; ++r) {
            if (call.gives(r)) areas[static_cast<size_t>(r)] += call.bytes();
        }
    }
    emulator::enqueue(stream, [self = shared_from_this(), group = group_] {
        self->shared_->ranks[self->rank_].taken = group;
    });
}

}  // namespace standin
