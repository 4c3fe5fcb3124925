// The communicator does not block: a call that waits for other ranks on the host returns at once,
// and issued() asks for its state. So a rank that is lost ends the others instead of stopping them.
#include "llmc/cuda/nccl_communicator.h"

#include <cassert>
#include <cstring>

#include "llmc/core/error.h"
#include "llmc/cuda/check.h"

namespace lmo::cuda {

namespace {

nccl::DataType type_of(const Tensor& tensor) {
    assert(tensor.dtype == DType::f32 || tensor.dtype == DType::f64);
    return tensor.dtype == DType::f64 ? nccl::kFloat64 : nccl::kFloat32;
}

size_t count_of(const Tensor& tensor) { return static_cast<size_t>(tensor.count()); }

}  // namespace

std::string make_nccl_id() {
    nccl::UniqueId id;
    nccl::check(nccl::library().get_unique_id(&id), nullptr, "making an id");
    return {id.bytes, sizeof id.bytes};
}

NcclCommunicator::NcclCommunicator(const std::string& id, int rank, int ranks, cudaStream_t stream)
    : stream_(stream) {
    nccl::UniqueId unique;
    if (id.size() != sizeof unique.bytes) {
        throw Error("NCCL: an id of " + std::to_string(id.size()) + " bytes, expected " +
                    std::to_string(sizeof unique.bytes));
    }
    std::memcpy(unique.bytes, id.data(), id.size());
    nccl::Config config;
    config.blocking = 0;
    check(nccl::library().comm_init_rank_config(&communicator_, ranks, unique, rank, &config),
          "connecting the GPUs");
}

NcclCommunicator::~NcclCommunicator() { NcclCommunicator::abort(); }

// All operations have ended where a run goes well, so that nothing is cut off; where it does not,
// nobody may wait. What the library says to it has no reader.
void NcclCommunicator::abort() {
    if (communicator_ == nullptr) return;
    (void)nccl::library().comm_abort(communicator_);
    communicator_ = nullptr;
}

bool NcclCommunicator::issued() {
    assert(communicator_ != nullptr);
    nccl::Result state = nccl::kSuccess;
    check(nccl::library().comm_get_async_error(communicator_, &state), "asking for its state");
    check(state, "working with the other ranks");
    return state != nccl::kInProgress;
}

bool NcclCommunicator::ended() {
    if (!issued()) return false;
    const cudaError_t status = cudaStreamQuery(stream_);
    if (status == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return false;
    }
    cuda::check(status, "waiting for a collective");
    return true;
}

void NcclCommunicator::grouped(const char* doing, const std::function<void()>& calls) {
    assert(communicator_ != nullptr);
    check(nccl::library().group_start(), doing);
    try {
        calls();
    } catch (...) {
        (void)nccl::library().group_end();
        throw;
    }
    check(nccl::library().group_end(), doing);
}

void NcclCommunicator::sum(const Tensor& tensor) {
    const char* const doing = "summing on all ranks";
    grouped(doing, [&] {
        check(nccl::library().all_reduce(tensor.data, tensor.data, count_of(tensor),
                                         type_of(tensor), nccl::kSum, communicator_, stream_),
              doing);
    });
}

void NcclCommunicator::sum_to_owners(std::span<const OwnedTensor> parts) {
    const char* const doing = "summing to the owners";
    grouped(doing, [&] {
        for (const auto& [tensor, owner] : parts) {
            check(
                nccl::library().reduce(tensor.data, tensor.data, count_of(tensor), type_of(tensor),
                                       nccl::kSum, owner, communicator_, stream_),
                doing);
        }
    });
}

void NcclCommunicator::share(std::span<const OwnedTensor> parts) {
    const char* const doing = "sharing from the owners";
    grouped(doing, [&] {
        for (const auto& [tensor, owner] : parts) {
            const bool half = size_of(tensor.dtype) == 2;  // bits, whatever they mean
            check(nccl::library().broadcast(
                      tensor.data, tensor.data, half ? tensor.bytes() : count_of(tensor),
                      half ? nccl::kUint8 : type_of(tensor), owner, communicator_, stream_),
                  doing);
        }
    });
}

}  // namespace lmo::cuda
