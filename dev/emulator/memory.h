// Inside the emulator: device memory as a table of allocations, and the shadow that the race build
// keeps of memory (race_checker.cpp).
#pragma once

#include "dev/emulator/runtime.h"

namespace emulator {

struct Cell;  // race_checker.h

struct Allocation {
    char* start;
    size_t bytes;
    char* pages;  // what was mapped for it, with the space up to the next allocation
    size_t page_bytes;
    bool large;             // never filled, counts as initialised
    Cell* cells = nullptr;  // race build: shadow of it
};

// Above this size memory is not filled, so that pages which nobody touches cost nothing.
constexpr size_t kLargeBytes = size_t{256} << 20;

void* allocate_device(size_t bytes);  // null where the device has no more
void free_device(void* pointer);      // never throws; mistakes become the pending error
size_t device_bytes_in_use();
// The allocation that an address belongs to, or null.
Allocation* find_allocation(const void* address);
// Throws Error where an allocation was written past its end.
void check_canaries();

void add_pinned(void* pointer, size_t bytes);
bool remove_pinned(void* pointer);
bool is_pinned(const void* pointer, size_t bytes);

// Copies and fills that keep untouched pages untouched where they can.
void fill_device(void* pointer, int value, size_t bytes);

// The ranges of addresses that all shared and all device memory lies in (in the ASan build only
// large allocations of the device do). Null before their first use. The race checker asks for every
// access.
constexpr size_t kSharedArenaBytes = 256 * 1024;
constexpr size_t kDeviceRangeBytes = size_t{4} << 40;
extern char* shared_arena;
extern char* device_range;

inline bool in_range(const void* pointer, const char* start, size_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(start) < bytes;
}
inline bool in_arena(const void* p) { return in_range(p, shared_arena, kSharedArenaBytes); }
inline bool in_device_range(const void* p) { return in_range(p, device_range, kDeviceRangeBytes); }

}  // namespace emulator
