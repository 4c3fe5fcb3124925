// Seeded bugs in host code: streams and events, copies, the life of memory, launches that a device
// refuses.
#include "tests/emulator/test_bugs.h"

namespace lmo::cuda {

namespace {

constexpr int kCount = 1000;
constexpr size_t kBytes = kCount * sizeof(float);

__global__ void fill_kernel(float* to, int count, float value) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = value;
}

__global__ void add_kernel(float* to, const float* from, int count, float value) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = from[i] + value;
}

void fill(cudaStream_t stream, float* to, float value, int count = kCount) {
    launch(LMO_KERNEL(fill_kernel), div_up(count, 128), 128, 0, stream, to, count, value);
}

void add(cudaStream_t stream, float* to, const float* from, float value) {
    launch(LMO_KERNEL(add_kernel), div_up(kCount, 128), 128, 0, stream, to, from, kCount, value);
}

void expect_all(const char* name, const float* values, float expected) {
    for (int i = 0; i < kCount; ++i) expect_near(name, i, values[i], expected, 0);
}

// ---- streams ------------------------------------------------------------------------------------

enum StreamBug {
    kNoWaitForEvent = 1,
    kEventTooEarly,
    kNoSynchronise,
    kOverwrittenWhileRead,
    kSourceReusedTooEarly,
    kWrongStreamSynchronised,
    kResultCopiedOnAnotherStream,
};

// Two streams: one makes values, the other adds to them and copies out, twice with one buffer.
void streams(int bug) {
    // The maker's work comes first or last where that shows the bug; the correct one bears all
    // orders.
    const bool maker_first = bug == kOverwrittenWhileRead || bug == kResultCopiedOnAnotherStream;
    using emulator::StreamOrder;
    if (bug != 0)
        emulator::settings().streams = maker_first ? StreamOrder::first : StreamOrder::last;
    cudaStream_t maker, user;
    cudaEvent_t made, used;
    for (cudaStream_t* stream : {&maker, &user}) {
        check(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "creating");
    }
    for (cudaEvent_t* event : {&made, &used}) {
        check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "creating");
    }
    float* const values = device_copy(std::vector<float>(kCount, 1.0f));
    float* const results = device_copy(std::vector<float>(kCount, 1.0f));
    float *in, *out;
    check(cudaMallocHost(reinterpret_cast<void**>(&in), kBytes), "allocating");
    check(cudaMallocHost(reinterpret_cast<void**>(&out), 2 * kBytes), "allocating");
    std::fill_n(out, 2 * kCount, 0.0f);
    check(cudaDeviceSynchronize(), "waiting");
    for (int round = 0; round < 2; ++round) {
        const float value = 10.0f * static_cast<float>(round + 1);
        if (round > 0 && bug != kOverwrittenWhileRead) {
            check(cudaStreamWaitEvent(maker, used), "waiting");
        }
        if (round > 0 && bug != kSourceReusedTooEarly)
            check(cudaStreamSynchronize(maker), "waiting");
        std::fill_n(in, kCount, value);
        if (bug == kEventTooEarly) check(cudaEventRecord(made, maker), "recording");
        check(cudaMemcpyAsync(values, in, kBytes, cudaMemcpyHostToDevice, maker), "copying");
        if (bug != kEventTooEarly) check(cudaEventRecord(made, maker), "recording");
        if (bug != kNoWaitForEvent) check(cudaStreamWaitEvent(user, made), "waiting");
        add(user, results, values, 1.0f);
        check(cudaEventRecord(used, user), "recording");
        const cudaStream_t copier = bug == kResultCopiedOnAnotherStream ? maker : user;
        check(
            cudaMemcpyAsync(out + round * kCount, results, kBytes, cudaMemcpyDeviceToHost, copier),
            "copying");
    }
    if (bug == kWrongStreamSynchronised)
        check(cudaStreamSynchronize(maker), "waiting");
    else if (bug != kNoSynchronise)
        check(cudaStreamSynchronize(user), "waiting");
    if (bug == kResultCopiedOnAnotherStream) check(cudaDeviceSynchronize(), "waiting");
    expect_all("first", out, 11.0f);
    expect_all("second", out + kCount, 21.0f);
    check(cudaDeviceSynchronize(), "waiting");
    for (float* memory : {in, out}) check(cudaFreeHost(memory), "freeing");
    for (cudaEvent_t event : {made, used}) check(cudaEventDestroy(event), "destroying");
    for (cudaStream_t stream : {maker, user}) check(cudaStreamDestroy(stream), "destroying");
}

// ---- memory -------------------------------------------------------------------------------------

enum MemoryBug {
    kCopyOutTooLong = 101,
    kCopyInTooLong,
    kWrongDirection,
    kWrongDirectionIn,
    kMemsetTooLong,
    kHostReads,
    kHostWrites,
    kKernelAfterFree,
    kCopyAfterFree,
    kDoubleFree,
    kFreeOfTheMiddle,
    kKernelOnHostMemory,
    kKernelOnNull,
    kNothingWritten,
    kPartlyWritten,
    kTwoAllocationsAsOne,
};

void release(float* pointer) {
    check(cudaFree(pointer), "freeing");
    std::erase(allocations(), static_cast<void*>(pointer));
}

// Fills an array, adds to it in another one and looks at the result.
void memory(int bug) {
    float* const a = device_array<float>(kCount);
    float* const b = device_array<float>(kCount);
    std::vector<float> host(2 * kCount, 5.0f);
    const auto copy = [](void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
        check(cudaMemcpy(to, from, bytes, kind), "copying");
    };
    const size_t bytes_in = bug == kCopyInTooLong ? kBytes + 4 : kBytes;
    copy(a, host.data(), bytes_in,
         bug == kWrongDirectionIn ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice);
    check(cudaMemset(b, 0, bug == kMemsetTooLong ? kBytes + 1 : kBytes), "setting");
    if (bug == kHostReads && a[3] != 5.0f) throw WrongResult("WRONG: 5 is not 5");
    if (bug == kHostWrites) a[3] = 5.0f;
    if (bug == kKernelAfterFree || bug == kCopyAfterFree || bug == kDoubleFree) release(b);
    if (bug == kDoubleFree) check(cudaFree(b), "freeing");
    if (bug == kFreeOfTheMiddle) check(cudaFree(b + 64), "freeing");
    float* to = bug == kKernelOnHostMemory ? host.data() : bug == kKernelOnNull ? nullptr : b;
    if (bug == kNothingWritten || bug == kPartlyWritten) {
        to = device_array<float>(kCount);
        if (bug == kPartlyWritten) fill(nullptr, to, 6.0f, kCount - 1);
    } else if (bug == kTwoAllocationsAsOne) {
        fill(nullptr, a, 6.0f, 4096 + kCount);
    } else if (bug != kCopyAfterFree) {
        add(nullptr, to, a, 1.0f);
    }
    copy(host.data(), bug == kKernelOnHostMemory ? b : to,
         bug == kCopyOutTooLong ? kBytes + 4 : kBytes,
         bug == kWrongDirection ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost);
    expect_all("sum", host.data(), 6.0f);
}

// ---- launches -----------------------------------------------------------------------------------

enum LaunchBug {
    kSharedWithoutAttribute = 201,
    kSharedTooLarge,
    kTooManyThreads,
    kNoThreads,
    kGridTooHigh,
    kGridTooDeep,
    kBlockTooDeep,
    kAttributeTooSmall,
};

__global__ void shared_kernel(float* to) {
    LMO_DYNAMIC_SHARED(float, memory);
    memory[threadIdx.x] = 1.0f;
    __syncthreads();
    to[threadIdx.x] = memory[threadIdx.x ^ 1];
}

void launches(int bug) {
    float* const a = device_array<float>(1024);
    dim3 grid(1), block(64);
    size_t shared = 60 * 1024;
    if (bug == kTooManyThreads) block = dim3(1056);
    if (bug == kNoThreads) block = dim3(0);
    if (bug == kBlockTooDeep) block = dim3(1, 1, 65);
    if (bug == kGridTooHigh) grid = dim3(1, 65536);
    if (bug == kGridTooDeep) grid = dim3(1, 1, 65536);
    if (bug == kSharedTooLarge) shared = 228 * 1024;
    if (bug != kSharedWithoutAttribute) {
        const size_t allowed = bug == kAttributeTooSmall ? 59 * 1024 : shared;
        allow_shared(LMO_KERNEL(shared_kernel), allowed);
    }
    launch(LMO_KERNEL(shared_kernel), grid, block, shared, nullptr, a);
    const auto got = host_copy(a, 64);
    for (int i = 0; i < 64; ++i) expect_near("memory", i, got[i], 1.0f, 0);
}

// ---- what has to be found -----------------------------------------------------------------------

constexpr const char* kCopy = "not within one live allocation";
constexpr const char* kFreed = "not allocated";
constexpr const char* kLaunch = "emulator: launch of";
constexpr const char* kTooLarge = "cudaErrorInvalidValue";
constexpr const char* kAllowed = "allowed are";

// clang-format off
LMO_BUG_TESTS(Streams, streams,
    // number                       what                                       plain   orders  asan    race
    {kNoWaitForEvent,               "missing wait for an event",               kWrong, kWrong, kWrong, kWrong},
    {kEventTooEarly,                "event recorded too early",                kWrong, kWrong, kWrong, kWrong},
    {kNoSynchronise,                "missing synchronise before reading",      kWrong, kWrong, kWrong, kWrong},
    {kOverwrittenWhileRead,         "overwritten while another stream reads",  kWrong, kWrong, kWrong, kWrong},
    {kSourceReusedTooEarly,         "source of a copy reused too early",       kWrong, kWrong, kWrong, kWrong},
    {kWrongStreamSynchronised,      "wrong stream synchronised",               kWrong, kWrong, kWrong, kWrong},
    {kResultCopiedOnAnotherStream,  "result copied on another stream",         kWrong, kWrong, kWrong, kWrong});

LMO_BUG_TESTS(Memory, memory,
    {kCopyOutTooLong,      "copy out too long",             kCopy,    kCopy,    kCopy,   kCopy},
    {kCopyInTooLong,       "copy in too long",              kCopy,    kCopy,    kCopy,   kCopy},
    {kWrongDirection,      "copy out in the wrong direction", kCopy,  kCopy,    kCopy,   kCopy},
    {kWrongDirectionIn,    "copy in in the wrong direction", "pointer of the device", "pointer of the device", "pointer of the device", "pointer of the device"},
    {kMemsetTooLong,       "memset too long",               kCopy,    kCopy,    kCopy,   kCopy},
    {kHostReads,           "host reads device memory",      kMissed,  kMissed,  kMissed, "host"},
    {kHostWrites,          "host writes device memory",     kMissed,  kMissed,  kMissed, "host"},
    {kKernelAfterFree,     "use after free by a kernel",    kOutside, kOutside, kAsan,   kBounds},
    {kCopyAfterFree,       "use after free by a copy",      kCopy,    kCopy,    kCopy,   kCopy},
    {kDoubleFree,          "double free",                   kFreed,   kFreed,   kFreed,  kFreed},
    {kFreeOfTheMiddle,     "free of a pointer into the middle", kFreed, kFreed, kFreed,  kFreed},
    {kKernelOnHostMemory,  "kernel writes host memory",     kWrong,   kWrong,   kWrong,  "WRONG|host|out of bounds"},
    {kKernelOnNull,        "kernel writes to null",         kOutside, kOutside, "invalid address|runtime error", kOutside},
    {kNothingWritten,      "result never written",          kWrong,   kWrong,   kWrong,  "never written"},
    {kPartlyWritten,       "result partly written",         kWrong,   kWrong,   kWrong,  "never written"},
    {kTwoAllocationsAsOne, "two allocations taken for one", kOutside, kOutside, kAsan,   kBounds});

LMO_BUG_TESTS(Launches, launches,
    {kSharedWithoutAttribute, "more than 48 KB of shared memory without attribute", kAllowed, kAllowed, kAllowed, kAllowed},
    {kSharedTooLarge,         "more shared memory than a device has", kTooLarge, kTooLarge, kTooLarge, kTooLarge},
    {kTooManyThreads,         "too many threads",              kLaunch,  kLaunch,  kLaunch,  kLaunch},
    {kNoThreads,              "no threads",                    kLaunch,  kLaunch,  kLaunch,  kLaunch},
    {kGridTooHigh,            "grid too high",                 kLaunch,  kLaunch,  kLaunch,  kLaunch},
    {kGridTooDeep,            "grid too deep",                 kLaunch,  kLaunch,  kLaunch,  kLaunch},
    {kBlockTooDeep,           "block too deep",                kLaunch,  kLaunch,  kLaunch,  kLaunch},
    {kAttributeTooSmall,      "less shared memory allowed than used", kAllowed, kAllowed, kAllowed, kAllowed});
// clang-format on

}  // namespace

}  // namespace lmo::cuda
