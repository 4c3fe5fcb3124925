// Inside the emulator: the race build's checker, and nothing in its place in the other builds.
#pragma once

#include "dev/emulator/memory.h"

namespace emulator {

#ifdef LMO_EMULATOR_RACE

// One access. Bits are counted so that a record has 16 bytes.
struct Record {
    uint32_t run = 0;          // block.run: names launch and block; 0 for no access
    uint32_t thread : 10 = 0;  // of the block
    uint32_t bytes : 2 = 0;    // which ones of the cell's two
    uint32_t written : 2 = 0;  // of a write: bytes that were ever written
    uint32_t atomic : 1 = 0;
    uint32_t pending : 1 = 0;  // an asynchronous write that has not been waited for
    uint32_t epoch : 16 = 0;   // barriers that the block had passed
    uint32_t clock = 0;        // of the thread; 0 for what everybody may see
    uint32_t code = 0;         // where in the source (race_checker.cpp)
};
static_assert(sizeof(Record) == 16);

// What is known of two bytes of memory.
struct Cell {
    Record write;
    Record reads[2];  // the last ones, of two different warps
};

constexpr int kCellBytes = 2;
// The number of a block's run that stands for the host.
constexpr uint32_t kHostRun = 1;

void make_cells(Allocation& allocation);
void free_cells(Allocation& allocation);
void start_launch_check();
void start_block_check(int64_t linear);
void start_thread_check(Thread& thread);
// Bytes of `allocation`, whose bounds have been checked.
void check_initialised(const Allocation& allocation, const void* pointer, size_t bytes,
                       const char* what);
void mark_initialised(const Allocation& allocation, const void* pointer, size_t bytes);

// An access of the code at `code`, seen by the compiler's calls. Addresses that are neither device
// nor shared memory are ignored.
void check_code_access(const void* pointer, size_t bytes, Access access, bool aligned,
                       const void* code);

#else

inline void make_cells(Allocation&) {}
inline void free_cells(Allocation&) {}
inline void start_launch_check() {}
inline void start_block_check(int64_t) {}
inline void start_thread_check(Thread&) {}
inline void check_initialised(const Allocation&, const void*, size_t, const char*) {}
inline void mark_initialised(const Allocation&, const void*, size_t) {}

#endif

}  // namespace emulator
