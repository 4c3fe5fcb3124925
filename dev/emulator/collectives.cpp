// Barriers of a block and collectives of a warp: threads arrive and wait, the last one to arrive
// does the work and makes the others ready. Who arrives somewhere else is reported at once.
#include "dev/emulator/collectives.h"

#include <algorithm>
#include <cstring>

#include "dev/emulator/scheduler.h"

namespace emulator {

namespace {

Warp warps[kMaxThreads / 32];

struct Barrier {
    int arrived;
    int predicates;  // how many gave true
    const char* operation;
    Site site;
    int result;  // of the barrier before
} waiting_barrier;

bool same_text(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

bool same_site(Site a, Site b) { return a.line == b.line && same_text(a.file, b.file); }

void check_same(const Thread& me, const Thread& other) {
    if (other.mask == me.mask && same_site(other.site, me.site) &&
        same_text(other.operation, me.operation)) {
        return;
    }
    fail("warp divergence: lane %d is at %s %s with mask %08x, lane %d at %s %s with mask %08x",
         me.lane, me.operation, text(me.site), me.mask, other.lane, other.operation,
         text(other.site), other.mask);
}

#ifdef LMO_EMULATOR_RACE
// What each lane did before is ordered before what all lanes do next.
void join_clocks(Warp& warp, uint32_t mask) {
    uint32_t joined[32] = {};
    std::vector<uint32_t> joined_in_block;
    for (int lane = 0; lane < 32; ++lane) {
        if (!in_mask(mask, lane)) continue;
        Thread& thread = *warp.lanes[lane];
        thread.known[lane] = thread.clock;
        for (int i = 0; i < 32; ++i) joined[i] = std::max(joined[i], thread.known[i]);
        if (thread.known_in_block.empty()) continue;
        joined_in_block.resize(block.threads);
        for (int i = 0; i < block.threads; ++i) {
            joined_in_block[i] = std::max(joined_in_block[i], thread.known_in_block[i]);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        if (!in_mask(mask, lane)) continue;
        Thread& thread = *warp.lanes[lane];
        std::copy(joined, joined + 32, thread.known);
        if (!joined_in_block.empty()) thread.known_in_block = joined_in_block;
        ++thread.clock;
    }
}
#endif

void make_lanes_ready(Warp& warp, uint32_t mask) {
    // The last one in runs first.
    const bool descending = order_is_descending();
    for (int k = 0; k < 32; ++k) {
        const int lane = descending ? k : 31 - k;
        if (in_mask(mask, lane) && warp.lanes[lane] != current) make_ready(*warp.lanes[lane]);
    }
}

void count_votes(Warp& warp, uint32_t mask, const void*) {
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
        if (in_mask(mask, lane) && lane_in<bool>(warp, lane)) votes |= 1u << lane;
    }
    for (int lane = 0; lane < 32; ++lane) {
        if (in_mask(mask, lane)) lane_out<uint32_t>(warp, lane) = votes;
    }
}

// True for the lane that has to do the collective's work; the others return after it is done.
bool arrive(const char* operation, uint32_t mask, const void* in, void* out, Site site) {
    Thread& me = *current;
    Warp& warp = warp_of(me);
    if (!in_mask(mask, me.lane)) {
        fail("%s %s: lane %d calls it but is not in its mask %08x", operation, text(site), me.lane,
             mask);
    }
    if (mask & ~warp.alive) {
        fail("%s %s: mask %08x names lanes %08x that have ended or do not exist", operation,
             text(site), mask, mask & ~warp.alive);
    }
    me.operation = operation;
    me.mask = mask;
    me.in = in;
    me.out = out;
    me.site = site;
    me.state = State::in_collective;
    warp.arrived |= 1u << me.lane;
    if ((warp.arrived & mask) != mask) {
        wait_for_turn();
        return false;
    }
    for (int lane = 0; lane < 32; ++lane) {
        if (in_mask(mask, lane)) check_same(me, *warp.lanes[lane]);
    }
    return true;
}

void leave(Warp& warp, uint32_t mask) {
    warp.arrived &= ~mask;
    make_lanes_ready(warp, mask);
    current->state = State::ready;
    if (order_is_random() && random_number() % 2) yield();
}

}  // namespace

Warp& warp_of(const Thread& thread) { return warps[thread.linear / 32]; }

void start_collectives() {
    waiting_barrier = {};
    for (int first = 0; first < block.threads; first += 32) {
        Warp& warp = warps[first / 32];
        const int lanes = std::min(32, block.threads - first);
        warp.alive = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
        warp.arrived = 0;
        for (int lane = 0; lane < lanes; ++lane) warp.lanes[lane] = &thread(first + lane);
    }
}

int barrier(const char* operation, bool predicate, Site site) {
    Barrier& b = waiting_barrier;
    if (b.arrived == 0) {
        b.operation = operation;
        b.site = site;
        b.predicates = 0;
    } else if (!same_site(b.site, site) || !same_text(b.operation, operation)) {
        fail("divergent barrier: this thread is at %s %s, %d others wait at %s %s", operation,
             text(site), b.arrived, b.operation, text(b.site));
    }
    Thread& me = *current;
    me.state = State::at_barrier;
    me.operation = operation;
    me.site = site;
    me.mask = 0;
    b.predicates += predicate;
    if (++b.arrived == block.threads) {
        b.arrived = 0;
        b.result = b.predicates;
        ++block.epoch;
        const bool descending = order_is_descending();
        for (int k = 0; k < block.threads; ++k) {
            make_ready(thread(descending ? k : block.threads - 1 - k));
        }
    }
    wait_for_turn();
    return b.result;  // nobody can complete the next barrier before all have left this one
}

void warp_collective(const char* operation, uint32_t mask, const void* in, void* out,
                     WarpFunction function, const void* extra, Site site) {
    if (!arrive(operation, mask, in, out, site)) return;
    Warp& warp = warp_of(*current);
    function(warp, mask, extra);
    leave(warp, mask);
}

void sync_warp(uint32_t mask, Site site) {
    if (!arrive("__syncwarp", mask, nullptr, nullptr, site)) return;
    Warp& warp = warp_of(*current);
#ifdef LMO_EMULATOR_RACE
    join_clocks(warp, mask);
#endif
    leave(warp, mask);
}

uint32_t ballot(const char* operation, uint32_t mask, bool predicate, Site site) {
    uint32_t votes;
    warp_collective(operation, mask, &predicate, &votes, count_votes, nullptr, site);
    return votes;
}

int own_lane() { return current->lane; }
int segment_start(int width) { return current->lane / width * width; }
bool real_shuffles() { return settings().real_shuffles; }

void atomic_access(const void* pointer, size_t bytes, Site site) {
    check_access(*current, pointer, bytes, Access::atomic, site);
    if (order_is_random() && random_number() % 4 == 0) yield();
}

}  // namespace emulator
