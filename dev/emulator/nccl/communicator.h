// Inside the stand-in for NCCL: the memory that its ranks share, and a rank's communicator.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "llmc/cuda/nccl_api.h"

namespace standin {

namespace nccl = lmo::cuda::nccl;

enum class Kind { all_reduce, reduce, broadcast };

struct Call {
    Kind kind;
    const void* from;
    void* to;
    size_t count;
    nccl::DataType type;
    int root;  // -1: none
    cudaStream_t stream;

    size_t bytes() const {
        return count * (type == nccl::kFloat64 ? 8 : (type == nccl::kFloat32 ? 4 : 1));
    }
    // Whether a rank's data goes to the others, and whether it gets a result.
    bool gives(int rank) const { return kind != Kind::broadcast || rank == root; }
    bool takes(int rank) const {
        return kind == Kind::all_reduce || (kind == Kind::reduce) == (rank == root);
    }
};

constexpr int kMostRanks = 16;
constexpr size_t kAreaBytes = size_t{256} << 20;  // of a rank; takes memory where it is written

// Groups of calls are numbered from 1.
struct RankState {
    std::atomic<int> device;      // that it uses, from 1; 0: it has not come
    std::atomic<uint64_t> given;  // the last group whose data is in its area
    std::atomic<uint64_t> taken;  // the last group that it has its results of
    std::atomic<uint64_t> calls;  // fingerprint of those
};
struct Shared {
    RankState ranks[kMostRanks];
};

// Moves on when it is asked for its state, as far as the others let it, and never waits for them.
class Communicator : public std::enable_shared_from_this<Communicator> {
  public:
    Communicator(const std::string& name, int ranks, int rank, int device);
    ~Communicator();

    bool idle() const { return state_ == nccl::kSuccess; }
    nccl::Result begin(std::vector<Call> calls);
    nccl::Result advance();

  private:
    bool all_have(std::atomic<uint64_t> RankState::*what, uint64_t group) const;
    nccl::Result advance_connecting();
    void give();
    void take();
    char* area(int rank) const;

    std::string name_;
    int ranks_, rank_, device_;
    Shared* shared_ = nullptr;
    size_t bytes_ = 0;
    bool connected_ = false, given_ = false, hangs_ = false;
    uint64_t group_ = 0;
    std::vector<Call> calls_;
    nccl::Result state_ = nccl::kInProgress;
};

std::string new_name();  // of memory that is there now
std::string& last_error();

}  // namespace standin
