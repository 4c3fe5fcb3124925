// The checker of the race build: for every two bytes of memory it keeps the last write and the last
// two reads, and reports accesses of two threads that nothing orders, whatever the schedule was.
//
// An earlier access is ordered before the present one where it belongs to another launch, to the
// same thread, or to the same block and a barrier lies in between, or a __syncwarp or another
// release and acquire that the thread's clock shows. Shuffles, votes and matrix products order
// nothing. Also reported: reads of what nobody has written, accesses out of bounds, misaligned
// ones, and those of memory that a cp.async fills before it was waited for.
#include "dev/emulator/race_checker.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "dev/emulator/scheduler.h"

#ifdef LMO_EMULATOR_RACE

extern "C" char __executable_start;  // by the linker

namespace emulator {

namespace {

// Codes below this one are offsets in the program, the others number the sites.
constexpr uint32_t kFirstSite = 0x80000000u;

struct Checker {
    uint32_t first_run = 0;             // of this launch
    std::vector<int64_t> block_of_run;  // from first_run on
    std::vector<Site> sites;
    std::map<std::pair<const char*, int>, uint32_t> site_numbers;
    Cell* shared_cells = nullptr;
};
Checker& checker() {
    static auto* the_checker = new Checker;
    return *the_checker;
}

char* program_start() { return &__executable_start; }

uint32_t code_of(Site site) {
    Checker& c = checker();
    const auto [at, is_new] = c.site_numbers.try_emplace(
        {site.file, site.line}, kFirstSite + static_cast<uint32_t>(c.sites.size()));
    if (is_new) c.sites.push_back(site);
    return at->second;
}
uint32_t code_of(const void* code) {
    return static_cast<uint32_t>(static_cast<const char*>(code) - program_start());
}
const char* place(uint32_t code) {
    return code >= kFirstSite ? text(checker().sites[code - kFirstSite])
                              : code_text(program_start() + code);
}

Cell* map_cells(size_t bytes) {
    void* memory = mmap(nullptr, (bytes / kCellBytes + 1) * sizeof(Cell), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw Error("emulator: no memory for the race checker");
    return static_cast<Cell*>(memory);
}

// Calls f(cell, mask of its bytes) for all cells of a range.
template <typename F>
void for_cells(Cell* cells, size_t offset, size_t bytes, F&& f) {
    const size_t end = offset + bytes;
    for (size_t at = offset / kCellBytes; at * kCellBytes < end; ++at) {
        const size_t first = at * kCellBytes;
        const unsigned mask = (first >= offset ? 1u : 0u) | (first + 1 < end ? 2u : 0u);
        f(cells[at], mask);
    }
}

// One access under check.
struct Accessor {
    Thread& thread;
    const char* pointer;
    size_t bytes;
    Access access;
    uint32_t code;
    bool shared;

    const char* verb() const {
        return access == Access::read ? "read" : access == Access::write ? "write" : "atomic";
    }
    const char* memory() const { return shared ? "shared" : "global"; }

    // fail() names the thread that runs, which may do this access for another one.
    void blame() const {
        current = &thread;
        thread_index = thread.index;
    }
};

// "block (0, 0, 0) thread (1, 0, 0)" of a record of this launch.
const char* who(const Record& record) {
    static char buffer[100];
    const int64_t linear = checker().block_of_run[record.run - checker().first_run];
    const int64_t x = grid_size.x, y = grid_size.y;
    const unsigned t = record.thread;
    snprintf(buffer, sizeof buffer, "block (%d, %d, %d) thread (%u, %u, %u)",
             static_cast<int>(linear % x), static_cast<int>(linear / x % y),
             static_cast<int>(linear / x / y), t % block_size.x, t / block_size.x % block_size.y,
             t / block_size.x / block_size.y);
    return buffer;
}

[[noreturn]] void report_race(const Accessor& a, const Record& earlier, bool earlier_wrote) {
    a.blame();
    fail("race in %s memory: the %s of %zu bytes at %s and the %s by %s at %s are not ordered",
         a.memory(), a.verb(), a.bytes, place(a.code),
         earlier.atomic  ? "atomic"
         : earlier_wrote ? "write"
                         : "read",
         who(earlier), place(earlier.code));
}

[[noreturn]] void report_uninitialised(const Accessor& a) {
    a.blame();
    fail("%s of %zu bytes of uninitialised %s memory at %s", a.verb(), a.bytes, a.memory(),
         place(a.code));
}

[[noreturn]] void report_pending(const Accessor& a, const Record& copy) {
    a.blame();
    fail(
        "%s of %zu bytes of shared memory at %s: the copy (cp.async or TMA) by %s at %s fills it "
        "and "
        "nobody has waited for that",
        a.verb(), a.bytes, place(a.code), who(copy), place(copy.code));
}

[[noreturn]] void report_bounds(const Accessor& a) {
    a.blame();
    const char* what = "no live allocation is there";
    if (a.shared)
        what = "outside of the declared arrays";
    else if (find_allocation(a.pointer))
        what = "past the end of the allocation";
    fail("%s of %zu bytes of %s memory out of bounds at %s: %s", a.verb(), a.bytes, a.memory(),
         place(a.code), what);
}

bool ordered(const Record& earlier, const Accessor& a, unsigned mask) {
    if (earlier.run < checker().first_run) return true;
    if (earlier.atomic && a.access == Access::atomic) return true;
    if (!(earlier.bytes & mask) || earlier.clock == 0) return true;
    if (earlier.run != block.run) return false;
    const Thread& me = a.thread;
    const int other = static_cast<int>(earlier.thread);
    if (other == me.linear || earlier.epoch != (block.epoch & 0xffffu)) return true;
    if (other / 32 == me.linear / 32 && earlier.clock <= me.known[other % 32]) return true;
    return !me.known_in_block.empty() && earlier.clock <= me.known_in_block[other];
}

Record record_of(const Accessor& a, unsigned mask) {
    Record record;
    record.run = block.run;
    record.thread = static_cast<uint32_t>(a.thread.linear) & 1023u;
    record.bytes = mask & 3u;
    record.atomic = a.access == Access::atomic;
    record.epoch = block.epoch & 0xffffu;
    record.clock = a.thread.clock;
    record.code = a.code;
    return record;
}

void check_read(Cell& cell, const Accessor& a, unsigned mask) {
    if (!ordered(cell.write, a, mask)) report_race(a, cell.write, true);
    Record& last = cell.reads[0];
    const bool other_warp =
        last.run != block.run || static_cast<int>(last.thread) / 32 != a.thread.linear / 32;
    if (other_warp && last.run >= checker().first_run) cell.reads[1] = last;
    last = record_of(a, mask);
}

void check_write(Cell& cell, const Accessor& a, unsigned mask) {
    if (!ordered(cell.write, a, mask)) report_race(a, cell.write, true);
    for (const Record& read : cell.reads) {
        if (!ordered(read, a, mask)) report_race(a, read, false);
    }
    const unsigned written = cell.write.written | mask;
    cell.write = record_of(a, mask);
    cell.write.written = written & 3u;
    if (a.access != Access::atomic) cell.reads[0] = cell.reads[1] = Record{};
}

void check_cell(Cell& cell, const Accessor& a, unsigned mask, bool may_be_new) {
    // Shared memory of another block has nothing to do with this one's.
    if (a.shared && cell.write.run != block.run) cell = Cell{};
    if (a.access != Access::write && !may_be_new && (cell.write.written & mask) != mask) {
        report_uninitialised(a);
    }
    if (cell.write.pending && cell.write.run == block.run) report_pending(a, cell.write);
    if (a.access == Access::read)
        check_read(cell, a, mask);
    else
        check_write(cell, a, mask);
}

// Fails unless the bytes are in bounds; null for memory that is neither shared nor the device's.
void check(const Accessor& a) {
    Cell* cells;
    size_t offset;
    bool may_be_new = false;
    if (a.shared) {
        if (!in_shared_memory(a.pointer, a.bytes)) report_bounds(a);
        cells = checker().shared_cells;
        offset = static_cast<size_t>(a.pointer - shared_arena);
    } else {
        if (!a.thread.waited) {
            a.blame();
            fail_early_access(place(a.code));
        }
        const Allocation* owner = find_allocation(a.pointer);
        if (!owner || a.pointer + a.bytes > owner->start + owner->bytes) report_bounds(a);
        cells = owner->cells;
        offset = static_cast<size_t>(a.pointer - owner->start);
        may_be_new = owner->large;
    }
    for_cells(cells, offset, a.bytes,
              [&](Cell& cell, unsigned mask) { check_cell(cell, a, mask, may_be_new); });
}

[[gnu::noinline]] void report_host_access(const void* pointer, Access access, const void* code) {
    static char message[600];
    snprintf(message, sizeof message, "emulator: host code %s memory of the device (%p) at %s",
             access == Access::read ? "reads" : "writes", pointer, code_text(code));
    add_pending_error(message);  // the compiler's calls must not throw
}

}  // namespace

// ---- accesses -----------------------------------------------------------------------------------

void check_code_access(const void* pointer, size_t bytes, Access access, bool aligned,
                       const void* code) {
    const bool shared = in_arena(pointer);
    if (!shared && !in_device_range(pointer)) return;
    if (!current) return report_host_access(pointer, access, code);
    const Accessor a{*current, static_cast<const char*>(pointer), bytes, access, code_of(code),
                     shared};
    if (aligned && reinterpret_cast<uintptr_t>(pointer) % bytes) {
        fail("misaligned %s of %zu bytes of %s memory at %s", a.verb(), bytes, a.memory(),
             place(a.code));
    }
    check(a);
}

void check_access(Thread& thread, const void* pointer, size_t bytes, Access access, Site site) {
    check({thread, static_cast<const char*>(pointer), bytes, access, code_of(site),
           in_arena(pointer)});
}

// ---- asynchronous writes ------------------------------------------------------------------------

void begin_async_write(Thread& thread, void* pointer, size_t bytes, Site site) {
    check_access(thread, pointer, bytes, Access::write, site);
    for_cells(checker().shared_cells, static_cast<char*>(pointer) - shared_arena, bytes,
              [&](Cell& cell, unsigned) { cell.write.pending = 1; });
}

void finish_async_write(Thread& thread, void* pointer, size_t bytes) {
    for_cells(checker().shared_cells, static_cast<char*>(pointer) - shared_arena, bytes,
              [&](Cell& cell, unsigned) {
                  cell.write.pending = 0;
                  cell.write.epoch = block.epoch & 0xffffu;
                  cell.write.clock = thread.clock;
              });
}

void finish_async_write_for_all(void* pointer, size_t bytes) {
    for_cells(checker().shared_cells, static_cast<char*>(pointer) - shared_arena, bytes,
              [&](Cell& cell, unsigned) {
                  cell.write.pending = 0;
                  cell.write.clock = 0;
              });
}

void mark_shared_initialised(void* pointer, size_t bytes) {
    for_cells(checker().shared_cells, static_cast<char*>(pointer) - shared_arena, bytes,
              [&](Cell& cell, unsigned) {
                  cell = Cell{};
                  cell.write.run = block.run;
                  cell.write.written = 3;
              });
}

// ---- clocks -------------------------------------------------------------------------------------

void release(Thread& thread, SyncClock& clock) {
    if (clock.run != block.run) {
        clock.run = block.run;
        clock.known.assign(block.threads, 0);
    }
    const int first = thread.linear - thread.lane;
    for (int lane = 0; lane < 32 && first + lane < block.threads; ++lane) {
        clock.known[first + lane] = std::max(clock.known[first + lane], thread.known[lane]);
    }
    for (size_t i = 0; i < thread.known_in_block.size(); ++i) {
        clock.known[i] = std::max(clock.known[i], thread.known_in_block[i]);
    }
    clock.known[thread.linear] = thread.clock++;
}

void acquire(Thread& thread, const SyncClock& clock) {
    if (clock.run != block.run) return;
    thread.known_in_block.resize(block.threads);
    for (int i = 0; i < block.threads; ++i) {
        thread.known_in_block[i] = std::max(thread.known_in_block[i], clock.known[i]);
    }
}

// ---- starts -------------------------------------------------------------------------------------

void start_launch_check() {
    Checker& c = checker();
    if (!c.shared_cells) c.shared_cells = map_cells(kSharedArenaBytes);
    block.run = std::max(block.run, kHostRun);
    c.first_run = block.run + 1;
    c.block_of_run.clear();
}

void start_block_check(int64_t linear) { checker().block_of_run.push_back(linear); }

void start_thread_check(Thread& thread) {
    thread.clock = 1;
    memset(thread.known, 0, sizeof thread.known);
    thread.known_in_block.clear();
}

// ---- allocations --------------------------------------------------------------------------------

void make_cells(Allocation& allocation) { allocation.cells = map_cells(allocation.bytes); }

void free_cells(Allocation& allocation) {
    munmap(allocation.cells, (allocation.bytes / kCellBytes + 1) * sizeof(Cell));
}

void check_initialised(const Allocation& allocation, const void* pointer, size_t bytes,
                       const char* what) {
    if (allocation.large) return;
    const size_t offset = static_cast<const char*>(pointer) - allocation.start;
    size_t at = 0;
    for_cells(allocation.cells, offset, bytes, [&](const Cell& cell, unsigned mask) {
        if ((cell.write.written & mask) != mask) {
            fail("%s %zu bytes of device memory of which those at offset %zu were never written",
                 what, bytes, at);
        }
        at += kCellBytes;
    });
}

void mark_initialised(const Allocation& allocation, const void* pointer, size_t bytes) {
    if (allocation.large) return;
    const size_t offset = static_cast<const char*>(pointer) - allocation.start;
    for_cells(allocation.cells, offset, bytes, [&](Cell& cell, unsigned mask) {
        const unsigned written = cell.write.written | mask;
        cell = Cell{};
        cell.write.run = kHostRun;
        cell.write.written = written & 3u;
    });
}

}  // namespace emulator

#endif
