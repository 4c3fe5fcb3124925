// Bounds of what the runtime reads and writes for a thread, in the builds without the race checker.
#include "dev/emulator/device.h"
#include "dev/emulator/memory.h"
#include "dev/emulator/scheduler.h"

namespace emulator {

void fail_early_access(const char* where) {
    fail(
        "access to global memory at %s before wait_for_previous(): the kernels ahead may not have "
        "ended",
        where);
}

// Fails with the line of the caller: this is called right from a kernel's load or store.
void check_alignment(const void* pointer, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes == 0) return;
    fail("access of %zu bytes at misaligned address %p at %s", bytes, pointer,
         code_text(__builtin_return_address(0)));
}

void check_global(const void* pointer) {
    if (!in_arena(pointer)) {
        if (current && !current->waited) fail_early_access(code_text(__builtin_return_address(0)));
        return;
    }
    fail("an instruction for global memory gets an address of shared memory at %s",
         code_text(__builtin_return_address(0)));
}

void check_shared(const void* pointer) {
    if (in_arena(pointer)) return;
    fail("an instruction for shared memory gets an address of other memory at %s",
         code_text(__builtin_return_address(0)));
}

#ifndef LMO_EMULATOR_RACE

void check_access(Thread& thread, const void* pointer, size_t bytes, Access access, Site site) {
    const bool is_shared = in_arena(pointer);
    if (!is_shared && !thread.waited) fail_early_access(text(site));
    if (is_shared ? in_shared_memory(pointer, bytes) : is_live(pointer, bytes)) return;
    fail("%s of %zu bytes at %p by thread %d at %s is out of bounds (%s memory)",
         access == Access::read ? "read" : "write", bytes, pointer, thread.linear, text(site),
         is_shared ? "shared" : "global");
}

void begin_async_write(Thread& thread, void* pointer, size_t bytes, Site site) {
    check_access(thread, pointer, bytes, Access::write, site);
}
void finish_async_write(Thread&, void*, size_t) {}
void finish_async_write_for_all(void*, size_t) {}
void mark_shared_initialised(void*, size_t) {}
void release(Thread&, SyncClock&) {}
void acquire(Thread&, const SyncClock&) {}

#endif

}  // namespace emulator
