// Host memory that a GPU reads by itself, through which bytes go to the device: the copy takes its
// turn in the stream while the host goes on, so that the next batch is handed over during the step
// before.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>

namespace lmo::cuda {

class Staging {
  public:
    Staging() = default;
    ~Staging();
    Staging(const Staging&) = delete;
    Staging& operator=(const Staging&) = delete;

    // Has read `host` when it returns. Waits only where the copies before it fill the memory.
    void copy(void* device, const void* host, size_t bytes, cudaStream_t stream);

  private:
    static constexpr size_t kSlots = 8, kSlotBytes = size_t{1} << 20;

    struct Slot {
        void* memory = nullptr;
        cudaEvent_t copied = nullptr;  // it may be overwritten
    };
    Slot& next_slot();

    std::array<Slot, kSlots> slots_;  // made when first used
    size_t next_ = 0;
};

}  // namespace lmo::cuda
