// Shared memory of the block that runs: an arena with guard pages on both sides. The dynamic part
// ends at the upper guard page, static arrays lie below it with red zones in between. All of it is
// 0xFF at the start of a block: NaN as a float, -1 as an integer.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "dev/emulator/memory.h"
#include "dev/emulator/scheduler.h"

#ifdef LMO_EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {

char* shared_arena = nullptr;

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kDynamicAlignment = 1024;
constexpr size_t kRedZone = 64;
constexpr int kMaxArrays = 64;
// What a block may have on devices of compute capability 9.0, and without asking for more.
constexpr size_t kMaxShared = 227 * 1024;
constexpr size_t kMaxWithoutAttribute = 48 * 1024;

struct Array {
    const void* key;
    const char* name;
    char* start;
    size_t bytes;
};

struct SharedMemory {
    char* dynamic = nullptr;
    size_t dynamic_bytes = 0;
    char* lowest = nullptr;  // of what is in use
    Array arrays[kMaxArrays];
    int count = 0;
    size_t static_bytes = 0;
} shared;

void poison([[maybe_unused]] char* start, [[maybe_unused]] size_t bytes) {
#ifdef LMO_EMULATOR_ASAN
    __asan_poison_memory_region(start, bytes);
#endif
}
void unpoison([[maybe_unused]] char* start, [[maybe_unused]] size_t bytes) {
#ifdef LMO_EMULATOR_ASAN
    __asan_unpoison_memory_region(start, bytes);
#endif
}

char* arena_end() { return shared_arena + kSharedArenaBytes; }

void make_arena() {
    void* memory = mmap(nullptr, kSharedArenaBytes + 4 * kPage, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw Error("emulator: no memory for shared memory");
    shared_arena = static_cast<char*>(memory) + 2 * kPage;
    shared.lowest = arena_end();
    mprotect(shared_arena, kSharedArenaBytes, PROT_READ | PROT_WRITE);
}

void check_total(const char* name) {
    const size_t total = shared.static_bytes + shared.dynamic_bytes;
    if (shared.static_bytes > kMaxWithoutAttribute) {
        fail("more than 48 KB of static shared memory, with %s", name);
    }
    if (total > kMaxShared) fail("more than 227 KB of shared memory, with %s", name);
    if (total > kMaxWithoutAttribute && shared.dynamic_bytes <= kMaxWithoutAttribute &&
        !has_shared_attribute(block.function)) {
        fail("more than 48 KB of shared memory, with %s, and no cudaFuncSetAttribute", name);
    }
}

[[maybe_unused]] void check_red_zone(const char* start, const char* end, const char* name) {
    for (const char* p = start; p < end; ++p) {
        if (*p == static_cast<char>(0xFF)) continue;
        throw Error(std::string("emulator: ") + block.kernel + ": a write past the end of " + name +
                    " in shared memory");
    }
}

bool inside(const char* pointer, size_t bytes, const char* start, size_t size) {
    return pointer >= start && pointer + bytes <= start + size;
}

}  // namespace

void start_shared_memory(size_t dynamic_bytes) {
    SharedMemory& s = shared;
    if (!shared_arena) make_arena();
    const size_t padded =
        (dynamic_bytes + kDynamicAlignment - 1) / kDynamicAlignment * kDynamicAlignment;
    s.dynamic = arena_end() - padded;
    s.dynamic_bytes = dynamic_bytes;
    char* from = std::min(s.lowest, s.dynamic);
    unpoison(from, arena_end() - from);
    memset(from, 0xFF, arena_end() - from);
    poison(shared_arena, kSharedArenaBytes);
    unpoison(s.dynamic, dynamic_bytes);
    s.lowest = s.dynamic;
    s.count = 0;
    s.static_bytes = 0;
}

void end_shared_memory() {
#ifndef LMO_EMULATOR_ASAN  // which has found it already
    const SharedMemory& s = shared;
    check_red_zone(s.dynamic + s.dynamic_bytes, arena_end(), "the dynamic part");
    for (int i = 0; i < s.count; ++i) {
        const Array& a = s.arrays[i];
        check_red_zone(a.start + a.bytes, i ? s.arrays[i - 1].start : s.dynamic, a.name);
    }
#endif
}

void* dynamic_shared() { return shared.dynamic; }

void* static_shared(const void* key, size_t bytes, size_t alignment, const char* name) {
    SharedMemory& s = shared;
    for (int i = 0; i < s.count; ++i) {
        if (s.arrays[i].key == key) return s.arrays[i].start;
    }
    if (s.count == kMaxArrays) fail("more than %d shared arrays in a kernel", kMaxArrays);
    s.static_bytes += bytes;
    check_total(name);
    alignment = std::max<size_t>(alignment, 16);
    char* start = s.lowest - kRedZone - bytes;
    start -= reinterpret_cast<uintptr_t>(start) % alignment;
    unpoison(start, s.lowest - start);
    memset(start, 0xFF, s.lowest - start);
    poison(start, s.lowest - start);
    unpoison(start, bytes);
    s.lowest = start;
    s.arrays[s.count++] = {key, name, start, bytes};
    return start;
}

bool in_shared_memory(const void* pointer, size_t bytes) {
    const SharedMemory& s = shared;
    const char* p = static_cast<const char*>(pointer);
    if (inside(p, bytes, s.dynamic, s.dynamic_bytes)) return true;
    for (int i = 0; i < s.count; ++i) {
        if (inside(p, bytes, s.arrays[i].start, s.arrays[i].bytes)) return true;
    }
    return false;
}

uint32_t shared_address(const void* pointer) {
    const char* p = static_cast<const char*>(pointer);
    if (p < shared_arena || p > arena_end()) fail("%p is no address in shared memory", pointer);
    return static_cast<uint32_t>(p - shared_arena);
}
void* shared_pointer(uint32_t address) {
    if (address > kSharedArenaBytes) fail("%#x is no address in shared memory", address);
    return shared_arena + address;
}

}  // namespace emulator
