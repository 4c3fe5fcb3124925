// The CUDA runtime's functions for memory. Copies check that each range lies in one allocation of
// the right kind.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <memory>

#include "dev/emulator/cudart.h"
#include "dev/emulator/memory.h"
#include "dev/emulator/streams.h"

using namespace emulator;

namespace {

bool from_device(cudaMemcpyKind kind) {
    return kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
}
bool to_device(cudaMemcpyKind kind) {
    return kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
}

// cudaMemcpyDefault finds out by the addresses.
cudaMemcpyKind resolved(cudaMemcpyKind kind, const void* to, const void* from) {
    if (kind != cudaMemcpyDefault) return kind;
    const bool to_is = find_allocation(to), from_is = find_allocation(from);
    if (to_is) return from_is ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
    return from_is ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost;
}

void check_range(const void* pointer, size_t bytes, bool on_device, const char* what) {
    if (on_device) {
        if (!is_live(pointer, bytes)) {
            fail("%s: %zu bytes at %p are not within one live allocation of the device", what,
                 bytes, pointer);
        }
    } else if (find_allocation(pointer)) {
        fail("%s: a pointer of the device where one of the host is expected", what);
    }
}

void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (from_device(kind)) check_range(from, bytes, true, "the source of a copy");
    if (from_device(kind) && kind != cudaMemcpyDeviceToDevice) {
        check_host_read(from, bytes, "copying");
    }
    if (to_device(kind)) mark_written(to, bytes, "copying");
    memmove(to, from, bytes);
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    if (settings().no_device) return remember(cudaErrorNoDevice);
    if (any_capture()) return refuse_in_capture();
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    *pointer = allocate_device(bytes);
    return *pointer ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* pointer) {
    if (!pointer) return cudaSuccess;
    if (any_capture()) return refuse_in_capture();
    return without_throwing([&] {
        wait_for_all();  // as cudaFree does
        free_device(pointer);
    });
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
    *pointer = nullptr;
    if (any_capture()) return refuse_in_capture();
    if (posix_memalign(pointer, 4096, bytes ? bytes : 1))
        return remember(cudaErrorMemoryAllocation);
    add_pinned(*pointer, bytes);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
    return cudaHostAlloc(pointer, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void* pointer) {
    if (!pointer) return cudaSuccess;
    return without_throwing([&] {
        wait_for_all();
        if (!remove_pinned(pointer)) {
            throw Error("emulator: cudaFreeHost of a pointer that is not allocated");
        }
        free(pointer);
    });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    if (bytes == 0) return cudaSuccess;
    kind = resolved(kind, to, from);
    check_range(to, bytes, to_device(kind), "the destination of a copy");
    check_range(from, bytes, from_device(kind), "the source of a copy");
    const bool deferred = settings().streams != StreamOrder::eager && !find_stream(stream).capture;
    if (kind == cudaMemcpyHostToDevice && deferred && !is_pinned(from, bytes)) {
        // Pageable memory has been read when the call returns.
        const char* bytes_of = static_cast<const char*>(from);
        auto snapshot = std::make_shared<std::vector<char>>(bytes_of, bytes_of + bytes);
        enqueue(stream, [=] { copy(to, snapshot->data(), bytes, kind); });
        return cudaSuccess;
    }
    enqueue(stream, [=] { copy(to, from, bytes, kind); });
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (any_capture()) return refuse_in_capture();
    cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
    if (bytes == 0) return cudaSuccess;
    check_range(pointer, bytes, true, "cudaMemset");
    enqueue(stream, [=] {
        mark_written(pointer, bytes, "cudaMemset");
        fill_device(pointer, value, bytes);
    });
    return cudaSuccess;
}

cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
    if (any_capture()) return refuse_in_capture();
    cudaMemsetAsync(pointer, value, bytes, nullptr);
    return cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
    *total = settings().device_bytes;
    const size_t used = device_bytes_in_use();
    *free_bytes = used < *total ? *total - used : 0;
    return cudaSuccess;
}

}  // extern "C"
