// Seeded bugs in kernels that pass data from thread to thread through shared memory: a histogram
// with atomics, a prefix sum, a transposition.
#include "tests/emulator/test_bugs.h"

namespace lmo::cuda {

namespace {

constexpr int kThreads = 128;

// ---- histogram ----------------------------------------------------------------------------------

enum HistogramBug {
    kPlainIncrement = 1,
    kCountersNotZeroed,
    kNoBarrierAfterZeroing,
    kNoBarrierBeforeFlush,
    kPlainFlush,
    kBinOutOfRange,
    kOneBinTooMany,
    kReadBeforeAllBlocks,
};

constexpr int kBins = 50;

// histogram[bin] += the number of ids that are `bin`.
__global__ void histogram_kernel(int bug, unsigned* histogram, const int* ids, int count) {
    LMO_SHARED(unsigned, counters, [kBins]);
    if (bug != kCountersNotZeroed) {
        for (int b = threadIdx.x; b < kBins; b += kThreads) counters[b] = 0;
    }
    if (bug != kNoBarrierAfterZeroing) __syncthreads();
    for (int i = blockIdx.x * kThreads + threadIdx.x; i < count; i += gridDim.x * kThreads) {
        const int bin = ids[i] + (bug == kBinOutOfRange && i == 77 ? kBins : 0);
        if (bug == kPlainIncrement)
            ++counters[bin];
        else
            atomicAdd(&counters[bin], 1);
    }
    if (bug != kNoBarrierBeforeFlush) __syncthreads();
    const int end = bug == kOneBinTooMany ? kBins + 1 : kBins;
    for (int b = threadIdx.x; b < end; b += kThreads) {
        if (bug == kPlainFlush)
            histogram[b] += counters[b];
        else
            atomicAdd(&histogram[b], counters[b]);
        // The other blocks may not have added theirs.
        if (bug == kReadBeforeAllBlocks && histogram[b] > 1u << 30) histogram[b] = 1u << 30;
    }
}

void histogram(int bug) {
    constexpr int kCount = 1000;
    std::vector<int> ids(kCount);
    std::vector<unsigned> expected(kBins);
    for (int i = 0; i < kCount; ++i) {
        ids[i] = static_cast<int>((some_value(11, i) + 1) / 2 * kBins);
        ++expected[ids[i]];
    }
    unsigned* const device = device_copy(std::vector<unsigned>(kBins));
    launch(LMO_KERNEL(histogram_kernel), 3, kThreads, 0, nullptr, bug, device, device_copy(ids),
           kCount);
    const auto got = host_copy(device, kBins);
    for (int b = 0; b < kBins; ++b) expect_near("bin", b, got[b], expected[b], 0);
}

// ---- prefix sum ---------------------------------------------------------------------------------

enum ScanBug {
    kNoBarrierInTheLoop = 101,
    kOneBuffer,
    kNeighbourOutOfRange,
    kSizeNotAPowerOfTwo,
    kWarpTotalsUnordered,
};

// out[i] = x[0] + ... + x[i] for one block of values; Hillis and Steele's double buffer.
__global__ void scan_kernel(int bug, int* out, const int* x) {
    LMO_SHARED(int, buffers, [2][kThreads]);
    const int tid = threadIdx.x;
    int from = 0;
    buffers[0][tid] = x[tid];
    __syncthreads();
    const int end = bug == kSizeNotAPowerOfTwo ? kThreads / 2 : kThreads;
    for (int step = 1; step < end; step *= 2) {
        const int to = bug == kOneBuffer ? from : 1 - from;
        const bool add = tid >= step || bug == kNeighbourOutOfRange;
        buffers[to][tid] = buffers[from][tid] + (add ? buffers[from][tid - step] : 0);
        from = to;
        if (bug != kNoBarrierInTheLoop) __syncthreads();
    }
    out[tid] = buffers[from][tid];
}

// The same by shuffles within the warps, then a sum over the warps before.
__global__ void warp_scan_kernel(int bug, int* out, const int* x) {
    LMO_SHARED(int, totals, [kThreads / 32]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = x[threadIdx.x];
    for (int step = 1; step < 32; step *= 2) {
        const int before = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += before;
    }
    if (lane == 31) totals[warp] = sum;
    if (bug != kWarpTotalsUnordered) __syncthreads();
    for (int w = 0; w < warp; ++w) sum += totals[w];
    out[threadIdx.x] = sum;
}

void scan(int bug) {
    std::vector<int> x(kThreads);
    for (int i = 0; i < kThreads; ++i) x[i] = static_cast<int>(some_value(12, i) * 100);
    int* const out = device_array<int>(kThreads);
    int* const out_by_warps = device_array<int>(kThreads);
    int* const device = device_copy(x);
    launch(LMO_KERNEL(scan_kernel), 1, kThreads, 0, nullptr, bug, out, device);
    launch(LMO_KERNEL(warp_scan_kernel), 1, kThreads, 0, nullptr, bug, out_by_warps, device);
    const auto got = host_copy(out, kThreads);
    const auto got_by_warps = host_copy(out_by_warps, kThreads);
    int sum = 0;
    for (int i = 0; i < kThreads; ++i) {
        sum += x[i];
        expect_near("sum", i, got[i], sum, 0);
        expect_near("sum by warps", i, got_by_warps[i], sum, 0);
    }
}

// ---- transposition ------------------------------------------------------------------------------

enum TransposeBug {
    kNoBarrierAfterReading = 201,
    kTileReused,
    kRaggedTileStored,
    kRaggedTileRead,
    kPitchTooSmall,
    kBlocksOverlap,
    kLeadingDimensionMixedUp,
    kIndexOverflows,
};

constexpr int kTile = 32, kTileRows = 8;  // a block has 32 x 8 threads

// out (columns x rows) = the transposed x (rows x columns); a block does all tiles of a tile
// column.
__global__ void transpose_kernel(int bug, float* out, const float* x, int rows, int columns) {
    LMO_SHARED(float, tile, [kTile][kTile + 1]);
    const int column0 = blockIdx.x * (bug == kBlocksOverlap ? kTile - 1 : kTile);
    const int tx = threadIdx.x, ty = threadIdx.y;
    for (int row0 = 0; row0 < rows; row0 += kTile) {
        for (int i = ty; i < kTile; i += kTileRows) {
            const int row = row0 + i, column = column0 + tx;
            const bool inside = (row < rows || bug == kRaggedTileRead) && column < columns;
            if (inside) tile[i][tx] = x[int64_t{row} * columns + column];
        }
        if (bug != kNoBarrierAfterReading) __syncthreads();
        for (int i = ty; i < kTile; i += kTileRows) {
            const int row = row0 + tx, column = column0 + i;
            const int pitch = bug == kLeadingDimensionMixedUp ? columns : rows;
            int64_t at = int64_t{column} * pitch + row;
            if (bug == kIndexOverflows) at = static_cast<int16_t>(at * 30);
            const bool inside = row < rows || bug == kRaggedTileStored;
            const int from = tx + (bug == kPitchTooSmall ? 2 : 0);
            if (inside && column < columns) out[at] = tile[from][i];
        }
        if (bug != kTileReused) __syncthreads();
    }
}

void transpose(int bug) {
    constexpr int kRows = 100, kColumns = 70;
    const auto x = some_values<float>(kRows * kColumns, 13);
    float* const out = device_array<float>(kRows * kColumns);
    launch(LMO_KERNEL(transpose_kernel), div_up(kColumns, kTile), dim3(kTile, kTileRows), 0,
           nullptr, bug, out, device_copy(x), kRows, kColumns);
    const auto got = host_copy(out, kRows * kColumns);
    for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < kColumns; ++c) {
            expect_near("out", c * kRows + r, got[c * kRows + r], x[r * kColumns + c], 0);
        }
    }
}

// ---- what has to be found -----------------------------------------------------------------------

// clang-format off
LMO_BUG_TESTS(Histogram, histogram,
    // number               what                               plain     orders    asan      race
    {kPlainIncrement,       "plain increment in shared memory", kMissed, kMissed,  kMissed,  kRace},
    {kCountersNotZeroed,    "counters not zeroed",             kWrong,   kWrong,   kWrong,   kUninitialised},
    {kNoBarrierAfterZeroing, "no barrier after zeroing",       kWrong,   kWrong,   kWrong,   "uninitialised|race"},
    {kNoBarrierBeforeFlush, "no barrier before the flush",     kWrong,   kWrong,   kWrong,   "uninitialised|race"},
    {kPlainFlush,           "plain addition across blocks",    kMissed,  kMissed,  kMissed,  kRace},
    {kBinOutOfRange,        "bin out of range",                kMissed,  kMissed,  kAsan,    kBounds},
    {kOneBinTooMany,        "one bin too many",                kOutside, kOutside, kAsan,    kBounds},
    {kReadBeforeAllBlocks,  "plain read beside atomics",       kMissed,  kMissed,  kMissed,  kRace});

LMO_BUG_TESTS(Scan, scan,
    {kNoBarrierInTheLoop,   "no barrier between the steps",    kWrong,   kWrong,   "WRONG|runtime error",  "uninitialised|race"},
    {kOneBuffer,            "one buffer in place of two",      kWrong,   kWrong,   kWrong,   kRace},
    {kNeighbourOutOfRange,  "neighbour before the beginning",  kWrong,   kWrong,   kAsan, kBounds},
    {kSizeNotAPowerOfTwo,   "one step too few",                kWrong,   kWrong,   kWrong,   kWrong},
    {kWarpTotalsUnordered,  "no barrier after the totals",     kMissed,  kWrong,   kMissed,  "uninitialised|race"});

LMO_BUG_TESTS(Transpose, transpose,
    {kNoBarrierAfterReading,   "no barrier after reading",        kWrong,   kWrong,   kWrong,  "uninitialised|race"},
    {kTileReused,              "tile reused without a barrier",   kMissed,  kWrong,   kMissed, kRace},
    {kRaggedTileStored,        "ragged tile stored",              kWrong,   kWrong,   kMissed, "uninitialised|race|out of bounds"},
    {kRaggedTileRead,          "ragged tile read",                kMissed,  kMissed,  kAsan,   kBounds},
    {kPitchTooSmall,           "tile read past its last row",     kOutside, kOutside, kAsan,   "uninitialised|out of bounds"},
    {kBlocksOverlap,           "blocks overlap",                  kMissed,  kMissed,  kMissed, kRace},
    {kLeadingDimensionMixedUp, "leading dimension mixed up",      kWrong,   kWrong,   kWrong,  "WRONG|race|out of bounds"},
    {kIndexOverflows,          "index overflows",                 kOutside, kOutside, kAsan,   "race|out of bounds"});
// clang-format on

}  // namespace

}  // namespace lmo::cuda
