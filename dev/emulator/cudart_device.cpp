// The CUDA runtime's functions for the device, its kernels' attributes, and errors.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "dev/emulator/cudart.h"
#include "dev/emulator/streams.h"

namespace emulator {

namespace {

constexpr int kMultiprocessors = 4;  // few, so that tests stay quick
constexpr int kThreadsOfMultiprocessor = 2048;
constexpr int kBlocksOfMultiprocessor = 32;
constexpr int kSharedOfMultiprocessor = 228 * 1024;
constexpr int kSharedOfBlock = 227 * 1024;
constexpr int kSharedWithoutAttribute = 48 * 1024;
constexpr int kReservedShared = 1024;  // of each block, for the system

struct ErrorText {
    cudaError_t status;
    const char* name;
    const char* text;
};
constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};

const ErrorText* find_text(cudaError_t status) {
    for (const ErrorText& error : kErrors) {
        if (error.status == status) return &error;
    }
    return nullptr;
}

cudaError_t last_error = cudaSuccess;

// Dynamic shared memory that cudaFuncSetAttribute allows, by kernel.
std::map<const void*, int>& shared_attributes() {
    static auto* attributes = new std::map<const void*, int>;
    return *attributes;
}

int current_device = 0;

cudaError_t check_device(int device) {
    if (settings().no_device) return remember(cudaErrorNoDevice);
    const bool known = device >= 0 && device < settings().devices;
    return known ? cudaSuccess : remember(cudaErrorInvalidDevice);
}

}  // namespace

cudaError_t remember(cudaError_t status) {
    if (status != cudaSuccess) last_error = status;
    return status;
}

cudaError_t refuse_in_capture() {
    break_captures();
    return remember(cudaErrorStreamCaptureUnsupported);
}

bool has_shared_attribute(const void* function) { return shared_attributes().count(function) > 0; }

size_t max_dynamic_shared(const void* function) {
    const auto at = shared_attributes().find(function);
    return at == shared_attributes().end() ? kSharedWithoutAttribute
                                           : static_cast<size_t>(at->second);
}

}  // namespace emulator

using namespace emulator;

extern "C" {

// ---- the device ---------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
    *count = settings().no_device ? 0 : settings().devices;
    return settings().no_device ? remember(cudaErrorNoDevice) : cudaSuccess;
}
// Memory and streams are not told apart by device: a process uses one.
cudaError_t cudaSetDevice(int device) {
    if (const cudaError_t status = check_device(device)) return status;
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return check_device(current_device);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    memset(properties, 0, sizeof *properties);
    if (const cudaError_t status = check_device(device)) return status;
    strcpy(properties->name, "CUDA emulator");
    properties->uuid.bytes[15] = static_cast<char>(device + 1);
    properties->pciBusID = device + 1;
    properties->major = settings().capability / 10;
    properties->minor = settings().capability % 10;
    properties->totalGlobalMem = settings().device_bytes;
    properties->multiProcessorCount = kMultiprocessors;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = kMaxThreads;
    properties->maxThreadsPerMultiProcessor = kThreadsOfMultiprocessor;
    properties->maxBlocksPerMultiProcessor = kBlocksOfMultiprocessor;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 0x7fffffff;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->sharedMemPerBlock = kSharedWithoutAttribute;
    properties->sharedMemPerBlockOptin = kSharedOfBlock;
    properties->sharedMemPerMultiprocessor = kSharedOfMultiprocessor;
    properties->reservedSharedMemPerBlock = kReservedShared;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->l2CacheSize = 50 << 20;
    properties->memoryBusWidth = 5120;
    properties->totalConstMem = 65536;
    properties->unifiedAddressing = 1;
    properties->asyncEngineCount = 2;
    properties->concurrentKernels = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp properties;
    if (const cudaError_t status = cudaGetDeviceProperties(&properties, device)) return status;
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount:
            *value = properties.multiProcessorCount;
            break;
        case cudaDevAttrComputeCapabilityMajor:
            *value = properties.major;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = properties.minor;
            break;
        case cudaDevAttrMaxThreadsPerBlock:
            *value = properties.maxThreadsPerBlock;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *value = kSharedWithoutAttribute;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = kSharedOfBlock;
            break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = kSharedOfMultiprocessor;
            break;
        case cudaDevAttrWarpSize:
            *value = 32;
            break;
        case cudaDevAttrL2CacheSize:
            *value = properties.l2CacheSize;
            break;
        default:
            return remember(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = settings().no_device ? 0 : CUDART_VERSION;
    return cudaSuccess;
}

// ---- kernels ------------------------------------------------------------------------------------

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > kSharedOfBlock) return remember(cudaErrorInvalidValue);
    shared_attributes()[function] = value;
    return cudaSuccess;
}

// Registers and static shared memory are unknown here: 0.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = kMaxThreads;
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(max_dynamic_shared(function));
    attributes->ptxVersion = attributes->binaryVersion = settings().capability;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                          int block_threads, size_t shared_bytes) {
    *blocks = 0;
    if (block_threads <= 0) return remember(cudaErrorInvalidValue);
    if (block_threads > kMaxThreads || shared_bytes > max_dynamic_shared(function)) {
        return cudaSuccess;
    }
    const int by_threads = kThreadsOfMultiprocessor / ((block_threads + 31) / 32 * 32);
    const int by_shared =
        kSharedOfMultiprocessor / (static_cast<int>(shared_bytes) + kReservedShared);
    *blocks = std::min({by_threads, by_shared, kBlocksOfMultiprocessor});
    return cudaSuccess;
}

// ---- errors -------------------------------------------------------------------------------------

cudaError_t cudaGetLastError() {
    const cudaError_t status = last_error;
    last_error = cudaSuccess;
    return status;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t status) {
    const ErrorText* error = find_text(status);
    return error ? error->name : "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t status) {
    const ErrorText* error = find_text(status);
    return error ? error->text : "unrecognized error code";
}

}  // extern "C"
