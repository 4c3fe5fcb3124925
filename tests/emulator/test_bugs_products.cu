// Seeded bugs in a tensor-core product with two stages of cp.async: C = A A^T, of which only the
// tiles on and below the diagonal are computed; each is also written transposed.
#include "llmc/cuda/ptx.cuh"
#include "tests/emulator/test_bugs.h"

namespace lmo::cuda {

namespace {

enum SyrkBug {
    kRowsBeyondTheEnd = 1,
    kWaitOneGroupShort,
    kNoBarrierAfterWait,
    kWrongLaneMapping,
    kWrongFragment,
    kStageRefilledWhileRead,
    kDiagonalMirrored,
    kMisalignedRow,
    kMisalignedCopy,
    kCopyToWrongMemory,
    kFragmentOutsideTheTile,
    kLastBarrierOnly,
};

constexpr int kThreads = 128;
constexpr int kTile = 64, kDepth = 32;
constexpr int kPitch = kDepth + 8;  // keeps 16-byte alignment and spreads the banks

struct Fragments {
    uint32_t a[2][4], b[2][4];
};

// Rows [row, row + 64) and columns [column, column + 32) of A; zero outside of it.
__device__ void copy_tile(int bug, bf16* tile, const bf16* a, int row, int column, int rows,
                          int columns) {
    for (int i = threadIdx.x; i < kTile * kDepth / 8; i += kThreads) {
        const int r = i / (kDepth / 8), c = i % (kDepth / 8) * 8;
        const bool inside = (row + r < rows || bug == kRowsBeyondTheEnd) && column + c < columns;
        const bf16* from = inside ? a + int64_t{row + r} * columns + column + c : a;
        if (bug == kMisalignedCopy) from += 2;
        cp_async_16(tile + r * kPitch + c, from, inside ? 16 : 0);
    }
}

// A warp's operands of step k: 32 rows of either tile.
__device__ void read_fragments(int bug, Fragments& to, const bf16* tile_a, const bf16* tile_b,
                               int warp, int k) {
    const int lane = threadIdx.x % 32;
    const int b_row = (bug == kWrongLaneMapping ? lane / 8 : lane / 16) * 8 + lane % 8;
    const int b_column = lane / 8 % 2 * 8 + (bug == kMisalignedRow ? 1 : 0);
    const int far = bug == kFragmentOutsideTheTile ? 2 * kTile * kPitch : 0;
    for (int i = 0; i < 2; ++i) {
        const int row = (warp / 2) * 32 + i * 16 + lane % 16;
        ldmatrix_x4(to.a[i], tile_a + row * kPitch + k * 16 + lane / 16 * 8);
        const int column = warp % 2 * 32 + i * 16 + b_row;
        ldmatrix_x4(to.b[i], tile_b + far + column * kPitch + k * 16 + b_column);
    }
}

__device__ void multiply(int bug, float (&sums)[2][4][4], const bf16* tile_a, const bf16* tile_b,
                         int warp) {
    for (int k = 0; k < kDepth / 16; ++k) {
        Fragments fragments;
        read_fragments(bug, fragments, tile_a, tile_b, warp, k);
        for (int i = 0; i < 2; ++i) {
            for (int j = 0; j < 4; ++j) {
                const uint32_t* const b = &fragments.b[j / 2][j % 2 * 2];
                mma_m16n8k16<bf16>(sums[i][j], fragments.a[i], b[0],
                                   bug == kWrongFragment ? b[0] : b[1]);
            }
        }
    }
}

// C (rows x rows) = A A^T for A (rows x columns); block b computes tile number b below the
// diagonal.
__global__ void syrk_kernel(int bug, bf16* c, const bf16* a, int rows, int columns) {
    LMO_SHARED(bf16, tiles_a, [2][kTile * kPitch]);
    LMO_SHARED(bf16, tiles_b, [2][kTile * kPitch]);
    int tile_row = 0, tile_column = blockIdx.x;
    while (tile_column > tile_row) tile_column -= ++tile_row;
    const int row0 = tile_row * kTile, column0 = tile_column * kTile, warp = threadIdx.x / 32;
    const int steps = div_up(columns, kDepth);
    const auto copy = [&](int step) {
        if (step < steps) {
            bf16* const to = bug == kCopyToWrongMemory ? c : tiles_a[step % 2];
            copy_tile(bug, to, a, row0, step * kDepth, rows, columns);
            copy_tile(bug, tiles_b[step % 2], a, column0, step * kDepth, rows, columns);
        }
        cp_async_commit();
    };
    float sums[2][4][4] = {};
    copy(0);
    for (int step = 0; step < steps; ++step) {
        copy(step + 1);
        if (bug == kWaitOneGroupShort)
            cp_async_wait<2>();
        else
            cp_async_wait<1>();
        if (bug != kNoBarrierAfterWait) __syncthreads();
        multiply(bug, sums, tiles_a[step % 2], tiles_b[step % 2], warp);
        // The next step but one fills this stage again; after the last step nobody does.
        const bool needed = bug != kLastBarrierOnly || step + 1 < steps;
        if (bug != kStageRefilledWhileRead && needed) __syncthreads();
    }
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
            for (int e = 0; e < 4; ++e) {
                const int row = row0 + warp / 2 * 32 + i * 16 + lane / 4 + e / 2 * 8;
                const int column = column0 + warp % 2 * 32 + j * 8 + lane % 4 * 2 + e % 2;
                if (row >= rows || column >= rows) continue;
                const bf16 value = from_float<bf16>(sums[i][j][e]);
                c[int64_t{row} * rows + column] = value;
                const bool mirror = tile_row != tile_column || bug == kDiagonalMirrored;
                if (mirror) c[int64_t{column} * rows + row] = value;
            }
        }
    }
}

void syrk(int bug) {
    for (const auto& [rows, columns] : {std::pair(64, 32), std::pair(136, 104)}) {
        const auto a = some_values<bf16>(static_cast<size_t>(rows * columns), 5);
        bf16* const c = device_array<bf16>(static_cast<size_t>(rows * rows));
        const int tiles = div_up(rows, kTile);
        launch(LMO_KERNEL(syrk_kernel), tiles * (tiles + 1) / 2, kThreads, 0, nullptr, bug, c,
               device_copy(a), rows, columns);
        const auto got = host_copy(c, static_cast<size_t>(rows * rows));
        for (int i = 0; i < rows; ++i) {
            for (int j = 0; j < rows; ++j) {
                double sum = 0;
                for (int k = 0; k < columns; ++k) {
                    sum += double{to_float(a[i * columns + k])} * to_float(a[j * columns + k]);
                }
                expect_near("c", i * rows + j, to_float(got[i * rows + j]), sum, 1e-2);
            }
        }
    }
}

// ---- what has to be found -----------------------------------------------------------------------

constexpr const char* kAsync = "cp.async";

// clang-format off
LMO_BUG_TESTS(Syrk, syrk,
    // number                 what                                plain       orders      asan        race
    {kRowsBeyondTheEnd,       "rows beyond the matrix",           kBounds,    kBounds,    kBounds,    kBounds},
    {kWaitOneGroupShort,      "wait for one group too few",       kWrong,     kWrong,     kWrong,     kAsync},
    {kNoBarrierAfterWait,     "no barrier after the wait",        kWrong,     kWrong,     kWrong,     kRace},
    {kWrongLaneMapping,       "wrong lane mapping of ldmatrix",   kWrong,     kWrong,     kWrong,     "out of bounds|uninitialised"},
    {kWrongFragment,          "wrong register of a fragment",     kWrong,     kWrong,     kWrong,     kWrong},
    {kStageRefilledWhileRead, "stage refilled while it is read",  kMissed,    kWrong,     kMissed,    kRace},
    {kDiagonalMirrored,       "diagonal written by two threads",  kMissed,    kMissed,    kMissed,    kRace},
    {kMisalignedRow,          "misaligned row for ldmatrix",      kAlignment, kAlignment, kAlignment, kAlignment},
    {kMisalignedCopy,         "misaligned source of a copy",      kAlignment, kAlignment, kAlignment, kAlignment},
    {kCopyToWrongMemory,      "copy to global memory",            kOutside, kOutside, kOutside, kOutside},
    {kFragmentOutsideTheTile, "fragment outside the tile",        kOutside, kMissed, kBounds, kBounds},
    {kLastBarrierOnly,        "barrier after the last step left out", kClean, kClean,     kClean,     kClean});
// clang-format on

}  // namespace

}  // namespace lmo::cuda
