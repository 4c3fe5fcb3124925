#include "llmc/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "llmc/cuda/check.h"

namespace lmo::cuda {

Staging::~Staging() {
    for (const Slot& slot : slots_) {
        if (slot.copied) cudaEventDestroy(slot.copied);
        if (slot.memory) cudaFreeHost(slot.memory);
    }
}

Staging::Slot& Staging::next_slot() {
    Slot& slot = slots_[next_++ % kSlots];
    if (!slot.memory) check(cudaMallocHost(&slot.memory, kSlotBytes), "allocating pinned memory");
    if (!slot.copied) {
        check(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming), "making an event");
    }
    check(cudaEventSynchronize(slot.copied), "waiting for a copy to the GPU");
    return slot;
}

void Staging::copy(void* device, const void* host, size_t bytes, cudaStream_t stream) {
    auto* to = static_cast<std::byte*>(device);
    auto* from = static_cast<const std::byte*>(host);
    while (bytes > 0) {
        const size_t now = std::min(bytes, kSlotBytes);
        const Slot& slot = next_slot();
        std::memcpy(slot.memory, from, now);
        check(cudaMemcpyAsync(to, slot.memory, now, cudaMemcpyHostToDevice, stream),
              "copying to the GPU");
        check(cudaEventRecord(slot.copied, stream), "copying to the GPU");
        to += now;
        from += now;
        bytes -= now;
    }
}

}  // namespace lmo::cuda
