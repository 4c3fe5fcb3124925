// The emulator's own interface: what device.h and ptx.h are built on, and what stand-ins for
// libraries (cublaslt.cpp) and for further instructions (hopper.cpp) use.
//
// Every thread of a block is a fiber with a stack of its own; one block runs at a time, on one
// thread of the operating system. A fiber runs until it has to wait, then the next one that can run
// goes on. Nothing here is instrumented by a sanitizer.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <vector>

#include "dev/emulator/settings.h"

// Keeps a function of the emulator that kernels include free of the sanitizers' checks.
#define LMO_NOT_CHECKED \
    __attribute__((no_sanitize("thread"), no_sanitize("address"), no_sanitize("undefined")))

// The last parameter of a function that wants to know who calls it.
#define LMO_SITE ::emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

namespace emulator {

// ---- errors -------------------------------------------------------------------------------------

// A mistake of the program under test. Launches and the functions of the CUDA runtime throw it.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A place in the source.
struct Site {
    const char* file;
    int line;
};

// Ends the launch with an Error that names kernel, block and thread; on the host it just throws.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// "kernels.cu:12" in a buffer that lives until the process has called this 16 times more.
const char* text(Site site);

// ---- threads, warps, blocks ---------------------------------------------------------------------

enum class State : uint8_t { ready, at_barrier, in_collective, asleep, done };

// One cp.async (async_copies.cpp).
struct AsyncCopy {
    void* to;
    const void* from;
    int bytes;  // of 16 that are copied; the rest becomes zero
    int group;
    bool landed;
};

struct Thread {
    void* stack_pointer = nullptr;  // while it does not run
    char* stack = nullptr;          // lowest address
    void* fake_stack = nullptr;     // AddressSanitizer's
    uint3 index{};                  // threadIdx
    int linear = 0;                 // x first, then y, then z
    int lane = 0;
    State state = State::done;
    bool waited = true;  // for the kernels ahead, where its own was launched before they had ended

    // What it waits for; in and out are on its own stack.
    const char* operation = nullptr;
    uint32_t mask = 0;
    const void* in = nullptr;
    void* out = nullptr;
    Site site{};

    // Its copies under way (async_copies.cpp), and the group that the next one joins.
    std::vector<AsyncCopy> copies;
    int copy_group = 0;

    // Race build: its own clock and what it knows of the clocks of others.
    uint32_t clock = 1;
    uint32_t known[32] = {};                 // of its warp
    std::vector<uint32_t> known_in_block{};  // of all threads; empty until acquire() is used
};

struct Warp {
    Thread* lanes[32];
    uint32_t alive;    // lanes that exist and have not ended
    uint32_t arrived;  // lanes that wait in a collective
};

struct Block {
    const char* kernel;  // the name given to launch()
    const void* function;
    int threads;
    size_t dynamic_shared_bytes;
    bool dependent;  // launched early: its threads have to wait for the kernels ahead
    uint32_t run;    // counts blocks since the start of the process, so it names launch and block
    uint32_t epoch;  // counts the barriers passed
};

extern Thread* current;  // null on the host
extern Block block;      // the one that runs
// threadIdx, blockIdx, blockDim and gridDim of `current`.
extern uint3 thread_index;
extern uint3 block_index;
extern dim3 block_size;
extern dim3 grid_size;

Thread& thread(int linear);
Warp& warp_of(const Thread& thread);

// ---- waiting ------------------------------------------------------------------------------------

// Waits for all threads of the block; returns how many of them gave true. Two barriers on
// different lines do not meet.
int barrier(const char* operation, bool predicate, Site site);

// What the last lane of a collective to arrive does for all lanes of the mask: reads
// lanes[i]->in, writes lanes[i]->out.
using WarpFunction = void (*)(Warp& warp, uint32_t mask, const void* extra);

// Waits for all lanes of the mask, which have to give the same operation, mask and site. Does not
// order memory accesses (only __syncwarp does).
void warp_collective(const char* operation, uint32_t mask, const void* in, void* out,
                     WarpFunction function, const void* extra, Site site);

// __syncwarp: also orders the memory accesses of its lanes.
void sync_warp(uint32_t mask, Site site);

template <typename T>
const T& lane_in(const Warp& warp, int lane) {
    return *static_cast<const T*>(warp.lanes[lane]->in);
}
template <typename T>
T& lane_out(const Warp& warp, int lane) {
    return *static_cast<T*>(warp.lanes[lane]->out);
}

// For waits of other kinds (mbarriers, groups of 128 threads). `current` stops until somebody calls
// wake() for it; where no thread can go on and no asynchronous work is left, the launch fails with
// a list of who waits where.
void wait_until_woken(const char* operation, Site site);
void wake(Thread& thread);

// griddepcontrol.wait: until a thread of a dependent launch has called it, it may neither access
// global memory nor end.
void wait_for_previous();

// Lets other threads go first. Threads of the random order do this by themselves.
void yield();

// Depends on the seed, the launch and the block only.
uint32_t random_number();

// ---- asynchronous work --------------------------------------------------------------------------

// True where asynchronous work that is issued now shall be done at once, false where as late as
// possible (settings().async_copies).
bool lands_early();

// Work of a copy engine: runs at once, or when no thread can go on, or in between. It runs
// outside of any thread: `current` may be anything then, so capture the thread that counts.
void add_async_work(std::function<void()> work);

// Calls at_start at the start of every block from now on; at_end at its end unless it failed.
void on_every_block(void (*at_start)(), void (*at_end)());

// ---- shared memory ------------------------------------------------------------------------------

void* static_shared(const void* key, size_t bytes, size_t alignment, const char* name);
void* dynamic_shared();

// True for bytes of one declared array or of the dynamic part.
bool in_shared_memory(const void* pointer, size_t bytes);
// The 32-bit addresses that PTX uses, less than 256 KiB; alignment up to 1024 bytes is kept.
uint32_t shared_address(const void* pointer);
void* shared_pointer(uint32_t address);

// ---- device memory ------------------------------------------------------------------------------

// True for bytes of one live allocation of the device.
bool is_live(const void* pointer, size_t bytes);

// For stand-ins of libraries, in the closure that they enqueue: fail unless all bytes belong to one
// live allocation. Race build: reading needs initialised bytes, writing makes them so.
void check_host_read(const void* pointer, size_t bytes, const char* what);
void mark_written(const void* pointer, size_t bytes, const char* what = "writing");

// ---- accesses of emulated instructions
// ----------------------------------------------------------- Plain memory accesses of kernels are
// seen by the sanitizers; what the runtime does for a thread is entered by these. All builds check
// bounds; the race build also initialisation and order.

enum class Access { read, write, atomic };

void check_access(Thread& thread, const void* pointer, size_t bytes, Access access, Site site);

// An asynchronous write to shared memory: until it is finished, every access to it is an error.
// Finished by cp.async's wait it counts as a write of that thread at that moment;
// `for_all` (TMA, where an mbarrier tells) as a write that everybody may see.
void begin_async_write(Thread& thread, void* pointer, size_t bytes, Site site);
void finish_async_write(Thread& thread, void* pointer, size_t bytes);
void finish_async_write_for_all(void* pointer, size_t bytes);
// Memory that the runtime itself set up for the block (an mbarrier object): initialised, no order.
void mark_shared_initialised(void* pointer, size_t bytes);

// Order through objects other than barriers: what a thread did before it released is ordered before
// what another thread does after it acquired. Costs nothing but in the race build.
struct SyncClock {
    uint32_t run = 0;
    std::vector<uint32_t> known;  // by thread
};
void release(Thread& thread, SyncClock& clock);
void acquire(Thread& thread, const SyncClock& clock);

// ---- launches and streams -----------------------------------------------------------------------

// Work on a stream: run now or later (settings().streams), or recorded while the stream captures
// (then it may run many times). Errors thrown by it reach whoever waits for the stream.
void enqueue(cudaStream_t stream, std::function<void()> work);

struct Launch {
    const char* name;
    const void* function;
    dim3 grid, block;
    size_t shared_bytes;
    void (*invoke)(const void* arguments);  // one thread's call of the kernel
    const void* arguments;
    bool dependent = false;  // cudaLaunchAttributeProgrammaticStreamSerialization
};

// What the attributes of a launch say; throws Error for those that no kernel of ours should have.
bool is_dependent(const char* name, const cudaLaunchConfig_t& config);
void check_launch(const Launch& launch);  // throws Error where a device would refuse
void run_grid(const Launch& launch);

// cudaLaunchKernelEx with a name for messages.
template <typename... Parameters>
void launch(const char* name, const cudaLaunchConfig_t& config, void (*kernel)(Parameters...),
            std::type_identity_t<Parameters>... arguments) {
    struct Call {
        void (*kernel)(Parameters...);
        std::tuple<Parameters...> arguments;
    };
    const Call call{kernel, {arguments...}};
    Launch launch{name,
                  reinterpret_cast<const void*>(kernel),
                  config.gridDim,
                  config.blockDim,
                  config.dynamicSmemBytes,
                  nullptr,
                  nullptr,
                  is_dependent(name, config)};
    launch.invoke = [](const void* of) {
        const Call& that = *static_cast<const Call*>(of);
        std::apply(that.kernel, that.arguments);
    };
    check_launch(launch);
    enqueue(config.stream, [launch, call]() mutable {
        launch.arguments = &call;
        run_grid(launch);
    });
}
template <typename... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block_shape,
            size_t shared_bytes, cudaStream_t stream,
            std::type_identity_t<Parameters>... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block_shape;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    launch(name, config, kernel, arguments...);
}

}  // namespace emulator
