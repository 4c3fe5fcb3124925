// Device memory. Each allocation has pages of its own, which end right before a page that nobody
// may touch; addresses are never used twice, so that a released pointer stays invalid. New memory
// is 0xFF: NaN as a float, -1 as an integer.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "dev/emulator/memory.h"
#include "dev/emulator/race_checker.h"
#include "dev/emulator/scheduler.h"

namespace emulator {

char* device_range = nullptr;

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;  // as cudaMalloc's
// Around a large allocation: a 32-bit index that wraps must not hit another one.
constexpr size_t kLargeGap = size_t{32} << 30;
// Written between the end of an allocation and the end of its 256 bytes.
constexpr unsigned char kCanary = 0xA5;

size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

struct Heap {
    std::map<uintptr_t, Allocation> allocations;  // by their start
    std::map<uintptr_t, size_t> pinned;
    size_t bytes_in_use = 0;
    char* next = nullptr;  // in device_range

    // Of pages that were looked up lately.
    struct Recent {
        uintptr_t page = 0;
        Allocation* allocation = nullptr;
    } recent[256];
};

// Never destroyed: other objects may release memory while the process ends.
Heap& heap() {
    static auto* the_heap = new Heap;
    return *the_heap;
}

void forget_recent() {
    std::fill(std::begin(heap().recent), std::end(heap().recent), Heap::Recent{});
}

// Addresses for an allocation; no memory is behind them yet.
char* reserve(size_t bytes, bool large) {
    Heap& h = heap();
    if (!device_range) {
        void* memory = mmap(reinterpret_cast<void*>(0x200000000000), kDeviceRangeBytes, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw Error("emulator: no addresses for device memory");
        device_range = h.next = static_cast<char*>(memory);
    }
    const size_t gap = large ? kLargeGap : kPage;
    if (static_cast<size_t>(device_range + kDeviceRangeBytes - h.next) < bytes + 2 * gap)
        return nullptr;
    char* pages = h.next + gap;
    h.next = pages + bytes + (large ? gap : 0);
    return pages;
}

bool place(Allocation& a, size_t bytes) {
    a.bytes = bytes;
    a.large = bytes > kLargeBytes;
    const size_t padded = round_up(std::max<size_t>(bytes, 1), kAlignment);
#ifdef LMO_EMULATOR_ASAN
    if (!a.large) {
        void* memory = nullptr;
        if (posix_memalign(&memory, kAlignment, std::max<size_t>(bytes, 1)) != 0) return false;
        a.start = static_cast<char*>(memory);
        a.pages = nullptr;
        memset(a.start, 0xFF, bytes);
        return true;
    }
#endif
    a.page_bytes = round_up(padded, kPage);
    a.pages = reserve(a.page_bytes, a.large);
    if (!a.pages || mprotect(a.pages, a.page_bytes, PROT_READ | PROT_WRITE) != 0) return false;
    a.start = a.pages + a.page_bytes - padded;
    if (!a.large) memset(a.start, 0xFF, bytes);
    memset(a.start + bytes, kCanary, padded - bytes);
    return true;
}

// What is wrong with the bytes past the end, or "". They are repaired, to be told once.
std::string overrun_text(const Allocation& a) {
    if (!a.pages) return "";
    const size_t padded = round_up(std::max<size_t>(a.bytes, 1), kAlignment);
    for (size_t i = a.bytes; i < padded; ++i) {
        if (static_cast<unsigned char>(a.start[i]) == kCanary) continue;
        memset(a.start + a.bytes, kCanary, padded - a.bytes);
        return "emulator: a device allocation of " + std::to_string(a.bytes) +
               " bytes was overrun by a write at offset " + std::to_string(i);
    }
    return "";
}

const Allocation& checked(const void* pointer, size_t bytes, const char* what) {
    const Allocation* a = find_allocation(pointer);
    if (a && static_cast<const char*>(pointer) + bytes <= a->start + a->bytes) return *a;
    fail("%s %zu bytes at %p: %s", what, bytes, pointer,
         a ? "they reach past the end of the allocation" : "no live device allocation is there");
}

}  // namespace

void* allocate_device(size_t bytes) {
    Heap& h = heap();
    if (bytes > settings().device_bytes - std::min(h.bytes_in_use, settings().device_bytes)) {
        return nullptr;
    }
    Allocation a{};
    if (!place(a, bytes)) return nullptr;
    make_cells(a);
    h.bytes_in_use += bytes;
    h.allocations[reinterpret_cast<uintptr_t>(a.start)] = a;
    forget_recent();
    return a.start;
}

void free_device(void* pointer) {
    Heap& h = heap();
    const auto at = h.allocations.find(reinterpret_cast<uintptr_t>(pointer));
    if (at == h.allocations.end()) {
        add_pending_error("emulator: cudaFree of a pointer that is not allocated");
        return;
    }
    Allocation& a = at->second;
    if (const std::string text = overrun_text(a); !text.empty()) add_pending_error(text.c_str());
    if (a.pages) {
        madvise(a.pages, a.page_bytes, MADV_DONTNEED);
        mprotect(a.pages, a.page_bytes, PROT_NONE);
    } else {
        free(a.start);
    }
    free_cells(a);
    h.bytes_in_use -= a.bytes;
    h.allocations.erase(at);
    forget_recent();
}

size_t device_bytes_in_use() { return heap().bytes_in_use; }

Allocation* find_allocation(const void* address) {
    Heap& h = heap();
    const auto at = reinterpret_cast<uintptr_t>(address);
    Heap::Recent& recent = h.recent[at / kPage % 256];
    if (recent.page == at / kPage) {
        Allocation* a = recent.allocation;
        return at - reinterpret_cast<uintptr_t>(a->start) < a->bytes ? a : nullptr;
    }
    auto after = h.allocations.upper_bound(at);
    if (after == h.allocations.begin()) return nullptr;
    Allocation& a = std::prev(after)->second;
    if (at - reinterpret_cast<uintptr_t>(a.start) >= a.bytes) return nullptr;
    if (a.pages) recent = {at / kPage, &a};  // else others may share the page
    return &a;
}

bool is_live(const void* pointer, size_t bytes) {
    const Allocation* a = find_allocation(pointer);
    return a && static_cast<const char*>(pointer) + bytes <= a->start + a->bytes;
}

void check_host_read(const void* pointer, size_t bytes, const char* what) {
    if (bytes == 0) return;
    check_initialised(checked(pointer, bytes, what), pointer, bytes, what);
}

void mark_written(const void* pointer, size_t bytes, const char* what) {
    if (bytes == 0) return;
    mark_initialised(checked(pointer, bytes, what), pointer, bytes);
}

void check_canaries() {
    for (const auto& [start, a] : heap().allocations) {
        if (const std::string text = overrun_text(a); !text.empty()) throw Error(text);
    }
}

void fill_device(void* pointer, int value, size_t bytes) {
    char* start = static_cast<char*>(pointer);
    const Allocation* a = find_allocation(pointer);
    if (value == 0 && a && a->large && bytes > kLargeBytes) {  // new pages are zero
        char* first = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(start), kPage));
        const size_t whole = (start + bytes - first) / kPage * kPage;
        madvise(first, whole, MADV_DONTNEED);
        memset(start, 0, first - start);
        memset(first + whole, 0, start + bytes - first - whole);
        return;
    }
    memset(pointer, value, bytes);
}

void add_pinned(void* pointer, size_t bytes) {
    heap().pinned[reinterpret_cast<uintptr_t>(pointer)] = bytes;
}
bool remove_pinned(void* pointer) {
    return heap().pinned.erase(reinterpret_cast<uintptr_t>(pointer)) > 0;
}
bool is_pinned(const void* pointer, size_t bytes) {
    const auto& pinned = heap().pinned;
    const auto at = reinterpret_cast<uintptr_t>(pointer);
    const auto after = pinned.upper_bound(at);
    if (after == pinned.begin()) return false;
    const auto& [start, size] = *std::prev(after);
    return at + bytes <= start + size;
}

std::string live_allocations() {
    const Heap& h = heap();
    if (h.allocations.empty()) return "";
    return std::to_string(h.allocations.size()) + " allocations, " +
           std::to_string(h.bytes_in_use) + " bytes";
}

}  // namespace emulator
