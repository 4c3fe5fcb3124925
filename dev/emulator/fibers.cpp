// Threads of a block as fibers. A fiber that has to wait switches directly to the next one that can
// run, without a detour over a scheduler, which halves the number of switches.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <deque>

#include "dev/emulator/race_checker.h"
#include "dev/emulator/scheduler.h"

#ifdef LMO_EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the registers that a call must keep on the present stack, stores the stack pointer in *save
// and goes on with the stack `load`. Boost.Context is as fast; ucontext is 20 times slower, for it
// also sets the signal mask.
extern "C" void emulator_switch_stack(void** save, void* load);
asm(R"(.text
.p2align 4
.globl emulator_switch_stack
.type emulator_switch_stack,@function
emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_stack,.-emulator_switch_stack)");

namespace emulator {

Thread* current = nullptr;
Block block{};
uint3 thread_index{};

namespace {

constexpr size_t kPage = 4096;
#ifdef LMO_EMULATOR_ASAN
constexpr size_t kStackBytes = 512 * 1024;
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif

struct Scheduler {
    std::vector<Thread*> threads;  // grows, never shrinks
    // Stack of threads that can run: the last one in goes on first, which keeps a warp together.
    uint16_t ready[kMaxThreads];
    int ready_count = 0;
    int done = 0;
    Order order = Order::ascending;
    uint64_t random_state = 1;
    const Launch* launch = nullptr;
    std::deque<std::function<void()>> async_work;

    void* host_stack_pointer = nullptr;
    void* dead_stack_pointer = nullptr;  // of a thread that never goes on
    void* host_fake_stack = nullptr;
    const void* host_stack = nullptr;
    size_t host_stack_bytes = 0;
    bool failed = false;
    char message[8192];
} scheduler;

void set_current(Thread& thread) {
    current = &thread;
    thread_index = thread.index;
}

// AddressSanitizer wants to know of every switch; a null fake stack means that the fiber is done.
void announce_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack,
                     [[maybe_unused]] size_t bytes) {
#ifdef LMO_EMULATOR_ASAN
    __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}
void finish_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** from = nullptr,
                   [[maybe_unused]] size_t* bytes = nullptr) {
#ifdef LMO_EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, from, bytes);
#endif
}

void switch_to(Thread& to) {
    Thread& from = *current;
    set_current(to);
    announce_switch(from.state == State::done ? nullptr : &from.fake_stack, to.stack, kStackBytes);
    emulator_switch_stack(&from.stack_pointer, to.stack_pointer);
    finish_switch(from.fake_stack);
}

[[noreturn]] void switch_to_host() {
    announce_switch(nullptr, scheduler.host_stack, scheduler.host_stack_bytes);
    current = nullptr;
    // Not into a local: AddressSanitizer may have freed this frame already.
    emulator_switch_stack(&scheduler.dead_stack_pointer, scheduler.host_stack_pointer);
    abort();
}

void run_async_work() {
    const auto work = std::move(scheduler.async_work.front());
    scheduler.async_work.pop_front();
    work();
}

// The next thread that can run, or null.
Thread* pick() {
    Scheduler& s = scheduler;
    const bool random = s.order == Order::random;
    while (!s.async_work.empty() && (s.ready_count == 0 || (random && random_number() % 8 == 0))) {
        run_async_work();
    }
    if (s.ready_count == 0) return nullptr;
    if (random) {
        const int i = static_cast<int>(random_number() % static_cast<uint32_t>(s.ready_count));
        std::swap(s.ready[i], s.ready[s.ready_count - 1]);
    }
    return s.threads[s.ready[--s.ready_count]];
}

// Nobody can go on: says who waits where.
[[noreturn]] void fail_with_deadlock() {
    static char list[4096];
    size_t length = 0;
    list[0] = 0;
    bool listed[kMaxThreads] = {};
    for (int i = 0; i < block.threads; ++i) {
        if (listed[i]) continue;
        const Thread& first = *scheduler.threads[i];
        int count = 0;
        for (int j = i; j < block.threads; ++j) {
            const Thread& other = *scheduler.threads[j];
            const bool same = first.state == State::done ? other.state == State::done
                                                         : other.state == first.state &&
                                                               other.operation == first.operation &&
                                                               other.site.line == first.site.line &&
                                                               other.site.file == first.site.file &&
                                                               other.mask == first.mask;
            if (!same) continue;
            listed[j] = true;
            ++count;
        }
        if (length > sizeof list - 300) break;
        length += snprintf(list + length, 300, "\n    %d threads (the first is %d) ", count, i);
        if (first.state == State::done) {
            length += snprintf(list + length, 100, "have ended");
        } else {
            length +=
                snprintf(list + length, 200, "wait at %s %s", first.operation, text(first.site));
            if (first.state == State::in_collective) {
                length += snprintf(list + length, 100, " with mask %08x", first.mask);
            }
        }
    }
    fail("divergence: no thread can go on:%s", list);
}

// Where every fiber starts.
void run_fiber() {
    const void* from;
    size_t bytes;
    finish_switch(nullptr, &from, &bytes);
#ifdef LMO_EMULATOR_ASAN
    if (!scheduler.host_stack) {  // the first fiber comes from the host's stack
        scheduler.host_stack = from;
        scheduler.host_stack_bytes = bytes;
    }
#endif
    scheduler.launch->invoke(scheduler.launch->arguments);
    Thread& me = *current;
    if (!me.waited) {
        fail(
            "the thread ended without wait_for_previous(), though its kernel may be launched "
            "before "
            "those ahead of it have ended");
    }
    end_copies(me);
    me.state = State::done;
    ++scheduler.done;
    warp_of(me).alive &= ~(1u << me.lane);
    if (Thread* next = pick()) switch_to(*next);
    if (scheduler.done != block.threads) fail_with_deadlock();
    switch_to_host();
}

Thread* make_thread(int linear) {
    auto* thread = new Thread();
    void* memory = mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) throw Error("emulator: no memory for the stacks of threads");
    mprotect(memory, kPage, PROT_NONE);
    thread->stack = static_cast<char*>(memory) + kPage;
    thread->linear = linear;
    thread->lane = linear % 32;
    return thread;
}

void start_thread(Thread& thread) {
    const int i = thread.linear;
    const int x = static_cast<int>(block_size.x), y = static_cast<int>(block_size.y);
    thread.index = make_uint3(i % x, i / x % y, i / x / y);
    thread.state = State::ready;
    thread.operation = "the start";
    thread.waited = !block.dependent;
    start_copies(thread);
    start_thread_check(thread);
    // The frame that emulator_switch_stack expects: six registers, where to go on, and a zero so
    // that the stack is aligned as after a call.
    void** top = static_cast<void**>(stack_top(thread));
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(run_fiber);
    for (int k = 0; k < 6; ++k) *--top = nullptr;
    thread.stack_pointer = top;
}

void unpoison_stacks() {
#ifdef LMO_EMULATOR_ASAN
    // Abandoned frames keep their poison. Of a stack that a thread left in order only the first
    // frame can still be poisoned; unpoisoning all of it each time would be slow.
    const size_t bytes = scheduler.failed ? kStackBytes : 8192;
    for (int i = 0; i < block.threads; ++i) {
        char* stack = scheduler.threads[i]->stack;
        __asan_unpoison_memory_region(stack + kStackBytes - bytes, bytes);
    }
#endif
}

}  // namespace

Thread& thread(int linear) { return *scheduler.threads[linear]; }

// Tops are staggered: with page-aligned stacks all of them would share the same lines of the cache.
void* stack_top(const Thread& thread) {
    return thread.stack + kStackBytes - thread.linear % 60 * 64;
}

bool in_stack(const Thread& thread, const void* address) {
    const char* at = static_cast<const char*>(address);
    return at >= thread.stack - kPage && at < thread.stack + kStackBytes;
}

uint32_t random_number() {
    uint64_t& x = scheduler.random_state;  // xorshift64
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return static_cast<uint32_t>(x >> 16);
}
void seed_random(uint64_t seed) {
    scheduler.random_state = (seed + 1) * 0x9E3779B97F4A7C15ull | 1;
    for (int i = 0; i < 4; ++i) random_number();
}

bool order_is_random() { return scheduler.order == Order::random; }
bool order_is_descending() { return scheduler.order == Order::descending; }

void make_ready(Thread& thread) {
    thread.state = State::ready;
    scheduler.ready[scheduler.ready_count++] = static_cast<uint16_t>(thread.linear);
}

void wait_for_turn() {
    Thread* me = current;
    Thread* next = pick();
    if (!next) fail_with_deadlock();
    if (next != me) switch_to(*next);
}

void yield() {
    make_ready(*current);
    wait_for_turn();
}

void wait_for_previous() { current->waited = true; }

void wait_until_woken(const char* operation, Site site) {
    current->state = State::asleep;
    current->operation = operation;
    current->site = site;
    wait_for_turn();
}

void wake(Thread& thread) {
    if (thread.state == State::asleep) make_ready(thread);
}

void add_async_work(std::function<void()> work) {
    scheduler.async_work.push_back(std::move(work));
    if (settings().async_copies == Landing::early) run_async_work();
}

bool lands_early() {
    const Landing landing = settings().async_copies;
    return landing == Landing::random ? random_number() & 1 : landing == Landing::early;
}

void abandon_block(const char* message) {
    strncpy(scheduler.message, message, sizeof scheduler.message - 1);
    scheduler.failed = true;
    switch_to_host();
}

void run_threads(const Launch& launch) {
    Scheduler& s = scheduler;
    s.launch = &launch;
    s.order = settings().order;
    s.ready_count = s.done = 0;
    s.failed = false;
    s.async_work.clear();
    const int count = block.threads;
    while (static_cast<int>(s.threads.size()) < count) {
        s.threads.push_back(make_thread(static_cast<int>(s.threads.size())));
    }
    const bool descending = s.order == Order::descending;
    for (int i = 0; i < count; ++i) start_thread(*s.threads[i]);
    start_collectives();
    for (int i = 0; i < count; ++i) make_ready(*s.threads[descending ? i : count - 1 - i]);

    Thread* first = pick();
    set_current(*first);
    s.host_stack = nullptr;
    announce_switch(&s.host_fake_stack, first->stack, kStackBytes);
    emulator_switch_stack(&s.host_stack_pointer, first->stack_pointer);
    finish_switch(s.host_fake_stack);
    unpoison_stacks();
    current = nullptr;
    if (s.failed) throw Error(s.message);
}

}  // namespace emulator
