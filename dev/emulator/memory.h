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

// True for all addresses that device memory may ever have.
bool in_device_range(const void* address);

void add_pinned(void* pointer, size_t bytes);
bool remove_pinned(void* pointer);
bool is_pinned(const void* pointer, size_t bytes);

// Copies and fills that keep untouched pages untouched where they can.
void fill_device(void* pointer, int value, size_t bytes);

constexpr size_t kSharedArenaBytes = 256 * 1024;
char* shared_arena();
bool in_arena(const void* pointer);

}  // namespace emulator
