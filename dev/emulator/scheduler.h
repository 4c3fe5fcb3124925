// Inside the emulator: fibers and who runs next (fibers.cpp), and what a block needs at its start
// and end (grid.cpp calls these).
#pragma once

#include "dev/emulator/runtime.h"

namespace emulator {

constexpr int kMaxThreads = 1024;

// Runs the threads of `block` from start to end; throws Error where one of them fails.
void run_threads(const Launch& launch);

// `current` stops; another thread goes on. Returns when somebody has made it ready.
void wait_for_turn();
void make_ready(Thread& thread);
bool order_is_random();
bool order_is_descending();

// Gives up the block: the host's stack goes on in run_threads, which throws Error(message).
[[noreturn]] void abandon_block(const char* message);
// True for an address on the stack of a thread or in the page that guards it.
bool in_stack(const Thread& thread, const void* address);
void* stack_top(const Thread& thread);

void seed_random(uint64_t seed);

// The access at `where` came before wait_for_previous().
[[noreturn]] void fail_early_access(const char* where);

void start_collectives();  // collectives.cpp
void start_shared_memory(size_t dynamic_bytes);
void end_shared_memory();  // throws Error where the memory between arrays was written to
void start_copies(Thread& thread);
void end_copies(Thread& thread);

// errors.cpp
void install_signal_handlers();
// "kernels.cu:12 in row_sum" for an address of machine code, in a buffer as text()'s.
const char* code_text(const void* code);
void report_pending_error();                  // throws what could not be thrown before
void add_pending_error(const char* message);  // for a place that must not throw

void log_kernel(const char* name);  // settings.cpp

// cudart_device.cpp: what cudaFuncSetAttribute allows.
bool has_shared_attribute(const void* function);
size_t max_dynamic_shared(const void* function);

}  // namespace emulator
