// Hopper's barriers that count bytes (mbarrier), barriers of some threads, stmatrix.
//
// An mbarrier is an entry of a table here; its 8 bytes of shared memory hold a number that is
// checked, so that memory used twice is found. Found as well: use before initialisation (also where
// only a barrier between the two is missing, in the race build), more arrivals than the count, and
// bytes announced that are fewer than those on their way. Announced bytes that never come, and
// phases that are waited for with the wrong parity, end as a deadlock whose list names the barrier.
#include "dev/emulator/hopper.h"

#include <cstdio>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "dev/emulator/mbarrier.h"

namespace emulator {

namespace {

constexpr int kMaxBytes = (1 << 20) - 1;  // that a phase can count

struct Waiter {
    Thread* thread;
    const Mbarrier* barrier;
};

struct NamedBarrier {
    int arrived = 0, threads = 0;
    uint32_t turn = 0;
    Site site{};
    std::vector<Thread*> waiting;
    SyncClock present, ended;
};

// Of the block that runs.
std::unordered_map<const uint64_t*, Mbarrier> barriers;
std::vector<Waiter> waiters;
NamedBarrier named_barriers[16];

void start_block() {
    barriers.clear();
    waiters.clear();
    for (NamedBarrier& barrier : named_barriers) barrier = NamedBarrier{};
}

[[maybe_unused]] const bool registered = [] {
    on_every_block(start_block, nullptr);
    return true;
}();

void describe(Mbarrier& barrier) {
    snprintf(barrier.wait, sizeof barrier.wait,
             "barrier_wait (phase %u lacks %d of %d arrivals and %d bytes)", barrier.phase,
             barrier.pending, barrier.arrivals, barrier.bytes);
}

void end_phase_if_complete(Mbarrier& barrier, Site site) {
    if (barrier.pending > 0 || barrier.bytes != 0) return describe(barrier);
    if (barrier.in_flight > 0) {
        fail(
            "mbarrier at %s: the phase ends while %d bytes are still on their way: too few were "
            "announced",
            text(site), barrier.in_flight);
    }
    ++barrier.phase;
    barrier.pending = barrier.arrivals;
    std::swap(barrier.present, barrier.ended);
    barrier.present = SyncClock{};
    describe(barrier);
    size_t kept = 0;
    for (const Waiter& waiter : waiters) {
        if (waiter.barrier == &barrier) {
            wake(*waiter.thread);
        } else {
            waiters[kept++] = waiter;
        }
    }
    waiters.resize(kept);
}

void arrive(uint64_t* memory, int bytes, const char* operation, Site site) {
    Mbarrier& barrier = find_mbarrier(memory, operation, site);
    check_access(*current, memory, sizeof *memory, Access::read, site);
    if (barrier.pending == 0) {
        fail("%s at %s: more arrivals than the %d of the barrier's count", operation, text(site),
             barrier.arrivals);
    }
    if (bytes < 0 || barrier.bytes + bytes > kMaxBytes) {
        fail("%s at %s: %d bytes, at most %d can be counted", operation, text(site), bytes,
             kMaxBytes);
    }
    release(*current, barrier.present);
    barrier.bytes += bytes;
    --barrier.pending;
    end_phase_if_complete(barrier, site);
}

}  // namespace

// ---- mbarrier ----------------------------------------------------------------------------------

Mbarrier& find_mbarrier(const uint64_t* memory, const char* operation, Site site) {
    const auto found = barriers.find(memory);
    if (found == barriers.end()) {
        fail("%s at %s: this mbarrier is not initialised", operation, text(site));
    }
    Mbarrier& barrier = found->second;
    if (*memory != barrier.contents) {
        fail("%s at %s: something else has written to the mbarrier's memory", operation,
             text(site));
    }
    return barrier;
}

void expect_delivery(Mbarrier& barrier, int bytes) { barrier.in_flight += bytes; }

void deliver(Mbarrier& barrier, Thread& issuer, int bytes, Site site) {
    release(issuer, barrier.present);
    barrier.bytes -= bytes;
    barrier.in_flight -= bytes;
    end_phase_if_complete(barrier, site);
}

void barrier_init(uint64_t* memory, int arrivals, Site site) {
    if (reinterpret_cast<uintptr_t>(memory) % 8 || !in_shared_memory(memory, 8)) {
        fail("barrier_init at %s: an mbarrier is 8 aligned bytes of shared memory", text(site));
    }
    if (arrivals < 1 || arrivals > kMaxBytes) {
        fail("barrier_init at %s: a count of %d", text(site), arrivals);
    }
    if (barriers.count(memory)) {
        fail("barrier_init at %s: it is an mbarrier already, not invalidated", text(site));
    }
    check_access(*current, memory, sizeof *memory, Access::write, site);
    Mbarrier& barrier = barriers[memory];
    barrier.memory = memory;
    barrier.arrivals = barrier.pending = arrivals;
    barrier.contents = *memory = 0x6d62617272696572u ^ reinterpret_cast<uintptr_t>(memory);
    describe(barrier);
}

void barrier_invalidate(uint64_t* memory, Site site) {
    const Mbarrier& barrier = find_mbarrier(memory, "barrier_invalidate", site);
    for (const Waiter& waiter : waiters) {
        if (waiter.barrier == &barrier) {
            fail("barrier_invalidate at %s: thread %d waits at it", text(site),
                 waiter.thread->linear);
        }
    }
    if (barrier.in_flight > 0) {
        fail("barrier_invalidate at %s: %d bytes are on their way to it", text(site),
             barrier.in_flight);
    }
    check_access(*current, memory, sizeof *memory, Access::write, site);
    barriers.erase(memory);
}

void barrier_arrive(uint64_t* memory, Site site) { arrive(memory, 0, "barrier_arrive", site); }

void barrier_arrive_expect(uint64_t* memory, int bytes, Site site) {
    arrive(memory, bytes, "barrier_arrive_expect", site);
}

void barrier_wait(uint64_t* memory, int parity, Site site) {
    Mbarrier& barrier = find_mbarrier(memory, "barrier_wait", site);
    if (parity != 0 && parity != 1) fail("barrier_wait at %s: parity %d", text(site), parity);
    check_access(*current, memory, sizeof *memory, Access::read, site);
    while (static_cast<int>(barrier.phase % 2) == parity) {
        waiters.push_back({current, &barrier});
        wait_until_woken(barrier.wait, site);
    }
    acquire(*current, barrier.ended);
}

// ---- barriers of some threads ------------------------------------------------------------------

namespace {
void do_nothing(Warp&, uint32_t, const void*) {}
}  // namespace

void named_barrier_sync(int id, int threads, Site site) {
    if (id < 1 || id > 15) fail("named_barrier_sync at %s: id %d", text(site), id);
    if (threads < 32 || threads > block.threads || threads % 32) {
        fail("named_barrier_sync at %s: %d threads of %d", text(site), threads, block.threads);
    }
    // Whole warps come.
    warp_collective("named_barrier_sync", 0xffffffffu, nullptr, nullptr, do_nothing, nullptr, site);
    NamedBarrier& barrier = named_barriers[id];
    if (barrier.arrived > 0 && barrier.threads != threads) {
        fail("named_barrier_sync at %s: barrier %d is waited for with %d threads here and %d at %s",
             text(site), id, threads, barrier.threads, text(barrier.site));
    }
    barrier.threads = threads;
    barrier.site = site;
    release(*current, barrier.present);
    if (++barrier.arrived < threads) {
        barrier.waiting.push_back(current);
        const uint32_t turn = barrier.turn;
        while (barrier.turn == turn) wait_until_woken("named_barrier_sync", site);
    } else {
        barrier.arrived = 0;
        ++barrier.turn;
        std::swap(barrier.present, barrier.ended);
        barrier.present = SyncClock{};
        for (Thread* thread : barrier.waiting) wake(*thread);
        barrier.waiting.clear();
    }
    acquire(*current, barrier.ended);
}

// ---- stmatrix ----------------------------------------------------------------------------------

namespace {

struct StoreInput {
    char* row;
    const uint32_t* r;
};

void store_lanes(Warp& warp, uint32_t, const void* transposed) {
    uint16_t matrices[4][8][8];
    for (int lane = 0; lane < 32; ++lane) {
        const uint32_t* r = lane_in<StoreInput>(warp, lane).r;
        const int a = lane / 4, b = lane % 4 * 2;
        for (int i = 0; i < 4; ++i) {
            auto& m = matrices[i];
            (transposed ? m[b][a] : m[a][b]) = static_cast<uint16_t>(r[i]);
            (transposed ? m[b + 1][a] : m[a][b + 1]) = static_cast<uint16_t>(r[i] >> 16);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        Thread& thread = *warp.lanes[lane];
        char* row = lane_in<StoreInput>(warp, lane).row;
        if (reinterpret_cast<uintptr_t>(row) % 16 || !in_shared_memory(row, 16)) {
            fail(
                "stmatrix at %s: the row address of lane %d is misaligned or outside the shared "
                "memory",
                text(thread.site), lane);
        }
        check_access(thread, row, 16, Access::write, thread.site);
        memcpy(row, matrices[lane / 8][lane % 8], 16);
    }
}

}  // namespace

void store_matrices(void* row, const uint32_t* r, bool transposed, Site site) {
    static const bool yes = true;
    const StoreInput in{static_cast<char*>(row), r};
    warp_collective("stmatrix", 0xffffffffu, &in, nullptr, store_lanes, transposed ? &yes : nullptr,
                    site);
}

}  // namespace emulator
