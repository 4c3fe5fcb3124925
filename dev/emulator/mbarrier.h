// Inside the emulator: mbarriers as TMA sees them.
#pragma once

#include "dev/emulator/runtime.h"

namespace emulator {

struct Mbarrier {
    uint64_t* memory = nullptr;
    uint64_t contents = 0;
    int arrivals = 0;    // that a phase needs
    int pending = 0;     // of these, still to come
    int bytes = 0;       // announced and still to come; negative: came before they were announced
    int in_flight = 0;   // of copies issued in this phase
    uint32_t phase = 0;  // that is being waited for
    SyncClock present, ended;  // order given by the arrivals of this phase and of the one before
    char wait[128];            // what its waiters are doing, for the list of a deadlock
};

// Fails where this is no mbarrier.
Mbarrier& find_mbarrier(const uint64_t* memory, const char* operation, Site site);
// A copy to shared memory was issued, and has arrived.
void expect_delivery(Mbarrier& barrier, int bytes);
void deliver(Mbarrier& barrier, Thread& issuer, int bytes, Site site);

}  // namespace emulator
