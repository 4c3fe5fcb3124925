// Hopper's products by a warpgroup (wgmma), and setmaxnreg.
//
// All of a warpgroup's functions are collectives of its 128 threads, which have to come to the same
// line. A product reads its tiles and adds to the accumulators at the wait for its group, at once,
// or either by chance. Until the wait, a TMA load into its tiles is an error; in the race build the
// tiles count as read when the product is issued and again at the wait, so that any write in
// between is a race. Checked are also the descriptors, that one wgmma_fence came before the first
// product, and that all products were waited for.
#include <cstring>
#include <vector>

#include "dev/emulator/hopper.h"

namespace emulator {

namespace {

constexpr int kThreads = 128;  // of a warpgroup
constexpr int kWarpgroups = 8;
constexpr int kRows = 64, kDepth = 16, kMaxColumns = 256;
// Registers of a multiprocessor for each thread of a warpgroup.
constexpr int kRegisters = 65536 / kThreads;

// One register of AVX2. What is wider than a register, g++ keeps in memory.
typedef float Lanes __attribute__((vector_size(32)));
constexpr int kLanes = 8;

// ---- operands ----------------------------------------------------------------------------------

// A matrix [outer, 16] in tiles with the 128-byte swizzle, decoded from the 64 bits.
struct Operand {
    uint32_t start = 0, leading = 0, stride = 0;  // bytes
    int outer = 0;
    bool transposed = false;

    // Groups of 8 rows of 128 bytes, each 1024 bytes, that it lies in.
    int groups() const { return transposed ? outer / 64 * 2 : outer / 8; }
    uint32_t group(int i) const {
        return start + (transposed ? i / 2 * leading + i % 2 * stride : i * stride);
    }
    // 16-byte pieces of one row of a group that it uses.
    int pieces() const { return transposed ? 8 : 2; }
};

Operand decode(uint64_t bits, int outer, bool transposed, const char* name, Site site) {
    Operand o;
    o.start = static_cast<uint32_t>(bits & 0x3fff) << 4;
    o.leading = static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4;
    o.stride = static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4;
    o.outer = outer;
    o.transposed = transposed;
    if (bits >> 62 != 1) {
        fail("wgmma at %s: %s's descriptor has swizzle mode %d; only 128 bytes (1) is emulated",
             text(site), name, static_cast<int>(bits >> 62));
    }
    if (bits & 0x3fffc000c000c000) {
        fail("wgmma at %s: %s's descriptor %#llx has bits set that shall be zero", text(site), name,
             static_cast<unsigned long long>(bits));
    }
    if (o.start % 1024 > (transposed ? 0 : 96) || o.start % 32) {
        fail("wgmma at %s: %s starts at %u bytes into 8 rows of a tile", text(site), name,
             o.start % 1024);
    }
    if (o.stride % 1024 || (transposed && o.leading % 1024)) {
        fail("wgmma at %s: %s's strides are %u and %u bytes, no multiples of 1024", text(site),
             name, o.leading, o.stride);
    }
    return o;
}

// Calls f(row, piece, 8 elements of it) for each 16-byte piece of a group.
template <typename F>
void for_pieces(const Operand& o, int group, F&& f) {
    for (int row = 0; row < 8; ++row) {
        for (int piece = 0; piece < o.pieces(); ++piece) {
            uint32_t address = o.group(group) + row * 128 + piece * 16;
            address ^= (address >> 7 & 7) << 4;
            f(row, piece, static_cast<const uint16_t*>(shared_pointer(address)));
        }
    }
}

void check_bounds(const Operand& o, const char* name, Site site) {
    for (int group = 0; group < o.groups(); ++group) {
        for_pieces(o, group, [&](int, int, const uint16_t* at) {
            if (in_shared_memory(at, 16)) return;
            fail("wgmma at %s: %s reaches outside the shared memory", text(site), name);
        });
    }
}

// Race build: the first thread of each warp reads all of it.
void enter_reads([[maybe_unused]] const Operand& o, [[maybe_unused]] int first_thread,
                 [[maybe_unused]] Site site) {
#ifdef LMO_EMULATOR_RACE
    for (int warp = 0; warp < kThreads / 32; ++warp) {
        Thread& reader = thread(first_thread + 32 * warp);
        for (int group = 0; group < o.groups(); ++group) {
            for_pieces(o, group, [&](int, int, const uint16_t* at) {
                check_access(reader, at, 16, Access::read, site);
            });
        }
    }
#endif
}

// Race build: who has waited for a product knows that all of the warpgroup's reads are over.
// Nothing else that the readers did becomes ordered by it.
void order_reads([[maybe_unused]] int first_thread) {
#ifdef LMO_EMULATOR_RACE
    static SyncClock clock;
    clock.run = block.run;
    clock.known.assign(block.threads, 0);
    for (int warp = 0; warp < kThreads / 32; ++warp) {
        Thread& reader = thread(first_thread + 32 * warp);
        clock.known[reader.linear] = reader.clock++;
    }
    for (int i = 0; i < kThreads; ++i) acquire(thread(first_thread + i), clock);
#endif
}

float value(uint16_t bits, bool fp16) {
    if (fp16) return __half2float(__ushort_as_half(bits));
    return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}

// to[k * outer + i] = element (i, k).
void read_operand(const Operand& o, bool fp16, float* to) {
    for (int group = 0; group < o.groups(); ++group) {
        for_pieces(o, group, [&](int row, int piece, const uint16_t* at) {
            for (int e = 0; e < 8; ++e) {
                const int k = o.transposed ? group % 2 * 8 + row : piece * 8 + e;
                const int i = o.transposed ? group / 2 * 64 + piece * 8 + e : group * 8 + row;
                to[k * o.outer + i] = value(at[e], fp16);
            }
        });
    }
}

// ---- products ----------------------------------------------------------------------------------

struct Product {
    ProductInput input;
    float* d[kThreads];
    Operand a, b;
    int group;
    bool landed;
    Site site;
};

struct Warpgroup {
    int index = 0;
    int arrived = 0;
    uint32_t turn = 0;  // counts its collectives
    const char* operation = nullptr;
    Site site{};
    bool fenced = false;
    int registers = 0;              // as set; 0: as launched
    int group = 0;                  // that the next product joins
    std::vector<Product> products;  // not waited for, oldest first

    Thread& thread(int i) const { return emulator::thread(index * kThreads + i); }
};

Warpgroup warpgroups[kWarpgroups];

void start_block() {
    for (int i = 0; i < kWarpgroups; ++i) {
        warpgroups[i] = Warpgroup{};
        warpgroups[i].index = i;
    }
}

void end_block() {
    for (const Warpgroup& g : warpgroups) {
        if (g.products.empty()) continue;
        fail("%s: warpgroup %d ended without wgmma_wait for its wgmma at %s", block.kernel, g.index,
             text(g.products.front().site));
    }
}

[[maybe_unused]] const bool registered = [] {
    on_every_block(start_block, end_block);
    return true;
}();

// Waits for the 128 threads; the last one calls f(warpgroup).
template <typename F>
void collective(const char* operation, const void* in, Site site, F&& f) {
    Thread& me = *current;
    Warpgroup& g = warpgroups[me.linear / kThreads];
    if ((g.index + 1) * kThreads > block.threads) {
        fail("%s at %s: the block ends within this warpgroup", operation, text(site));
    }
    if (g.arrived == 0) {
        g.operation = operation;
        g.site = site;
    } else if (strcmp(g.operation, operation) || g.site.line != site.line ||
               strcmp(g.site.file, site.file)) {
        fail("divergence in warpgroup %d: thread %d is at %s %s, %d others are at %s %s", g.index,
             me.linear, operation, text(site), g.arrived, g.operation, text(g.site));
    }
    me.in = in;
    if (++g.arrived < kThreads) {
        const uint32_t turn = g.turn;
        while (g.turn == turn) wait_until_woken(operation, site);
        return;
    }
    g.arrived = 0;
    ++g.turn;
    f(g);
    for (int i = kThreads - 1; i >= 0; --i) wake(g.thread(i));
}

struct Buffers {
    alignas(64) float a[kDepth * kRows];
    alignas(64) float b[kDepth * kMaxColumns];
    alignas(64) float d[kRows * kMaxColumns];
} buffers;

// Calls f(accumulator of a thread, element of D) for all of them.
template <typename F>
void for_accumulators(const Product& p, F&& f) {
    const int n = p.input.n;
    for (int t = 0; t < kThreads; ++t) {
        float* row = buffers.d + (t / 32 * 16 + t % 32 / 4) * n + t % 4 * 2;
        for (int j = 0; j < n / 8; ++j) {
            for (int i = 0; i < 4; ++i) {
                f(p.d[t][4 * j + i], row[i / 2 * 8 * n + 8 * j + i % 2]);
            }
        }
    }
}

// Without fused multiply-add, so that all processors give the same bits.
__attribute__((target_clones("avx2", "default"))) void multiply(int n) {
    for (int row = 0; row < kRows; ++row) {
        for (int column = 0; column < n; column += kLanes) {
            Lanes& d = *reinterpret_cast<Lanes*>(buffers.d + row * n + column);
            Lanes sum = d;
            for (int k = 0; k < kDepth; ++k) {
                sum += buffers.a[k * kRows + row] *
                       *reinterpret_cast<const Lanes*>(buffers.b + k * n + column);
            }
            d = sum;
        }
    }
}

void land(Product& p) {
    if (p.landed) return;
    p.landed = true;
    read_operand(p.a, p.input.fp16, buffers.a);
    read_operand(p.b, p.input.fp16, buffers.b);
    const bool add = p.input.add;
    for_accumulators(p, [add](float mine, float& d) { d = add ? mine : 0.0f; });
    multiply(p.input.n);
    for_accumulators(p, [](float& mine, float d) { mine = d; });
}

bool overlaps(const Operand& o, uint32_t start, uint32_t bytes) {
    for (int i = 0; i < o.groups(); ++i) {
        const uint32_t group = o.group(i) / 1024 * 1024;
        if (group < start + bytes && start < group + 1024) return true;
    }
    return false;
}

}  // namespace

void start_product(const ProductInput& input, Site site) {
    collective("wgmma", &input, site, [site](Warpgroup& g) {
        if (!g.fenced) fail("wgmma at %s: no wgmma_fence before it", text(site));
        Product& p = g.products.emplace_back();
        p.input = *static_cast<const ProductInput*>(g.thread(0).in);
        p.group = g.group;
        p.landed = false;
        p.site = site;
        for (int i = 0; i < kThreads; ++i) {
            const auto& other = *static_cast<const ProductInput*>(g.thread(i).in);
            if (other.a != p.input.a || other.b != p.input.b || other.add != p.input.add) {
                fail("wgmma at %s: operands differ between threads 0 and %d of warpgroup %d",
                     text(site), i, g.index);
            }
            p.d[i] = other.d;
        }
        p.a = decode(p.input.a, kRows, p.input.transpose_a, "A", site);
        p.b = decode(p.input.b, p.input.n, p.input.transpose_b, "B", site);
        check_bounds(p.a, "A", site);
        check_bounds(p.b, "B", site);
        enter_reads(p.a, g.index * kThreads, site);
        enter_reads(p.b, g.index * kThreads, site);
        const bool after_late_one =
            g.products.size() > 1 && !g.products[g.products.size() - 2].landed;
        if (lands_early() && !after_late_one) land(p);
    });
}

void wgmma_fence(Site site) {
    collective("wgmma_fence", nullptr, site, [](Warpgroup& g) { g.fenced = true; });
}

void wgmma_commit(Site site) {
    collective("wgmma_commit", nullptr, site, [](Warpgroup& g) { ++g.group; });
}

void wait_for_products(int pending, Site site) {
    collective("wgmma_wait", nullptr, site, [pending](Warpgroup& g) {
        size_t done = 0;
        for (; done < g.products.size() && g.products[done].group < g.group - pending; ++done) {
            Product& p = g.products[done];
            land(p);
            enter_reads(p.a, g.index * kThreads, p.site);
            enter_reads(p.b, g.index * kThreads, p.site);
        }
        g.products.erase(g.products.begin(), g.products.begin() + done);
        order_reads(g.index * kThreads);
    });
}

void check_no_product_reads(const void* pointer, size_t bytes, Site site) {
    const uint32_t start = shared_address(pointer);
    for (const Warpgroup& g : warpgroups) {
        for (const Product& p : g.products) {
            if (!overlaps(p.a, start, static_cast<uint32_t>(bytes)) &&
                !overlaps(p.b, start, static_cast<uint32_t>(bytes))) {
                continue;
            }
            fail(
                "tma_load at %s into a tile that the wgmma at %s, which warpgroup %d has not "
                "waited for, still reads",
                text(site), text(p.site), g.index);
        }
    }
}

void set_registers(const char* operation, int registers, Site site) {
    collective(operation, nullptr, site, [=](Warpgroup& g) {
        g.registers = registers;
        int sum = 0;
        for (const Warpgroup& other : warpgroups) sum += other.registers;
        if (sum > kRegisters) {
            fail("%s at %s: the block's warpgroups have %d registers a thread, there are %d",
                 operation, text(site), sum, kRegisters);
        }
    });
}

}  // namespace emulator
