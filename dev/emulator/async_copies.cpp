// cp.async: copies of 16 bytes to shared memory that arrive at the wait for their group, at once,
// or either by chance. Late finds missing waits, early finds memory that is refilled too soon.
#include <cstring>

#include "dev/emulator/memory.h"
#include "dev/emulator/ptx.h"
#include "dev/emulator/scheduler.h"

namespace emulator {

namespace {

constexpr int kBytes = 16;

void land(AsyncCopy& copy) {
    if (copy.landed) return;
    memcpy(copy.to, copy.from, copy.bytes);
    memset(static_cast<char*>(copy.to) + copy.bytes, 0, kBytes - copy.bytes);
    copy.landed = true;
}

}  // namespace

void cp_async_16(void* shared, const void* global, int bytes, Site site) {
    Thread& me = *current;
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % kBytes) {
        fail("cp.async at %s: misaligned address (from %p to %p)", text(site), global, shared);
    }
    if (bytes < 0 || bytes > kBytes) fail("cp.async at %s: %d bytes", text(site), bytes);
    if (!in_arena(shared)) {
        fail("cp.async at %s: its destination is out of bounds of shared memory", text(site));
    }
    if (bytes > 0) check_access(me, global, bytes, Access::read, site);
    begin_async_write(me, shared, kBytes, site);
    AsyncCopy copy{shared, global, bytes, me.copy_group, false};
    if (lands_early()) land(copy);
    me.copies.push_back(copy);
}

void cp_async_commit() { ++current->copy_group; }

void wait_for_copies(int pending) {
    Thread& me = *current;
    size_t kept = 0;
    for (AsyncCopy& copy : me.copies) {
        if (copy.group >= me.copy_group - pending) {
            me.copies[kept++] = copy;
            continue;
        }
        land(copy);
        finish_async_write(me, copy.to, kBytes);
    }
    me.copies.resize(kept);
}

void start_copies(Thread& thread) {
    thread.copies.clear();
    thread.copy_group = 0;
}

void end_copies(Thread& thread) {
    for (AsyncCopy& copy : thread.copies) land(copy);
    thread.copies.clear();
}

}  // namespace emulator
