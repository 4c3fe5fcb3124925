// The collectives of GPUs (llmc/device/communicator.h) by NCCL, on a backend's second stream.
#pragma once

#include <functional>
#include <string>

#include "llmc/cuda/nccl_library.h"
#include "llmc/device/communicator.h"

namespace lmo::cuda {

std::string make_nccl_id();

class NcclCommunicator : public lmo::Communicator {
  public:
    // Begins to connect this process's current device.
    NcclCommunicator(const std::string& id, int rank, int ranks, cudaStream_t stream);
    ~NcclCommunicator() override;
    NcclCommunicator(const NcclCommunicator&) = delete;
    NcclCommunicator& operator=(const NcclCommunicator&) = delete;

    bool issued() override;
    bool ended() override;
    void sum(const Tensor& tensor) override;
    void sum_to_owners(std::span<const OwnedTensor> parts) override;
    void share(std::span<const OwnedTensor> parts) override;
    void abort() override;
    std::string describe() const override { return nccl::version_text(); }

  private:
    // Calls that become one operation of the device.
    void grouped(const char* doing, const std::function<void()>& calls);
    void check(nccl::Result result, const char* doing) const {
        nccl::check(result, communicator_, doing);
    }

    nccl::Communicator* communicator_ = nullptr;
    cudaStream_t stream_;
};

}  // namespace lmo::cuda
