// Seeded bugs in what the lanes of a warp do together, and barriers that not all threads reach.
#include "llmc/cuda/ptx.cuh"
#include "tests/emulator/test_bugs.h"

namespace lmo::cuda {

namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;

// ---- exchange through shared memory within a warp -----------------------------------------------

enum ExchangeBug {
    kNoSyncwarp = 1,
    kShuffleInPlaceOfSyncwarp,
    kSyncwarpOfHalfTheWarp,
    kNoSyncwarpBeforeOverwriting,
    kSyncwarpAcrossWarps,
};

// Every lane gets the values of its neighbour and of its opposite.
__global__ void exchange_kernel(int bug, int* out, const int* x) {
    LMO_SHARED(int, values, [64]);
    const int tid = threadIdx.x, lane = tid % 32;
    values[tid] = x[tid];
    if (bug == kShuffleInPlaceOfSyncwarp)
        (void)__shfl_sync(kAllLanes, lane, 0);
    else if (bug == kSyncwarpOfHalfTheWarp)
        __syncwarp(lane < 16 ? 0xffffu : 0xffff0000u);
    else if (bug != kNoSyncwarp)
        __syncwarp();
    const int opposite = bug == kSyncwarpAcrossWarps ? 63 - tid : tid - lane + 31 - lane;
    const int sum = values[tid ^ 1] + values[opposite];
    if (bug != kNoSyncwarpBeforeOverwriting) __syncwarp();
    values[tid] = sum;
    __syncwarp();
    out[tid] = values[tid ^ 2];
}

void exchange(int bug) {
    std::vector<int> x(64);
    for (int i = 0; i < 64; ++i) x[i] = i * i;
    int* const out = device_array<int>(64);
    launch(LMO_KERNEL(exchange_kernel), 1, 64, 0, nullptr, bug, out, device_copy(x));
    const auto got = host_copy(out, 64);
    for (int i = 0; i < 64; ++i) {
        const int j = i ^ 2;
        expect_near("out", i, got[i], x[j ^ 1] + x[j / 32 * 32 + 31 - j % 32], 0);
    }
}

// ---- masks --------------------------------------------------------------------------------------

enum MaskBug {
    kOwnLaneNotInMask = 101,
    kSourceNotInMask,
    kEndedLaneInMask,
    kFullMaskInBranch,
    kMasksDiffer,
    kKindsDiffer,
    kProductInBranch,
    kBallotOfEnded,
    kLadderWithoutWidth,
};

// Half-warps sum by themselves, each with its own mask; out[tid] = the sum of its half's values.
__global__ void halves_kernel(int bug, float* out, const float* x) {
    const int tid = threadIdx.x, lane = tid % 32;
    const bool low = lane < 16;
    float sum = x[tid];
    uint32_t mask = low ? 0x0000ffffu : 0xffff0000u;
    if (bug == kOwnLaneNotInMask) mask = 0x0000ffffu;
    if (bug == kFullMaskInBranch) mask = kAllLanes;
    if (bug == kMasksDiffer && low) mask = lane < 8 ? 0x0000ffffu : 0x0000ff0fu;
    if (bug == kLadderWithoutWidth) mask = kAllLanes;
    if (bug == kEndedLaneInMask && lane == 5) return;
    const int steps = bug == kLadderWithoutWidth ? 16 : 8;
    if (low || bug == kLadderWithoutWidth) {
        for (int step = steps; step > 0; step /= 2) {
            const int apart = bug == kSourceNotInMask ? 2 * step : step;
            sum += __shfl_xor_sync(mask, sum, apart);
        }
    } else if (bug == kKindsDiffer && lane == 20) {
        __syncwarp(mask);
    } else {
        for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(mask, sum, step);
    }
    if (bug == kBallotOfEnded && lane == 31) return;
    const uint32_t positive = __ballot_sync(kAllLanes, x[tid] > 0);
    float d[4] = {sum, 0.0f, 0.0f, 0.0f};
    const uint32_t zeros[4] = {};
    if (bug != kProductInBranch || lane != 3) mma_m16n8k16<bf16>(d, zeros, 0, 0);
    out[tid] = (positive >> lane & 1) ? d[0] : -d[0];
}

void halves(int bug) {
    const auto x = some_values<float>(64, 14);
    float* const out = device_array<float>(64);
    launch(LMO_KERNEL(halves_kernel), 1, 64, 0, nullptr, bug, out, device_copy(x));
    const auto got = host_copy(out, 64);
    for (int i = 0; i < 64; ++i) {
        double sum = 0;
        for (int j = i / 16 * 16; j < i / 16 * 16 + 16; ++j) sum += x[j];
        expect_near("out", i, got[i], x[i] > 0 ? sum : -sum, 1e-5);
    }
}

// ---- barriers -----------------------------------------------------------------------------------

enum BarrierBug {
    kTwoLines = 201,
    kOneWarpOnly,
    kEarlyReturn,
    kDifferentCounts,
    kBarrierInLoopOfRaggedLength,
    kSkippedByOneThread,
};

// Three warps pass a value on, a barrier a step; out[tid] = 3 steps later.
__global__ void relay_kernel(int bug, int* out, const int* x, int count) {
    LMO_SHARED(int, values, [96]);
    const int tid = threadIdx.x, warp = tid / 32;
    if (bug == kEarlyReturn && tid >= count) return;
    values[tid] = tid < count ? x[tid] : 0;
    if (bug == kTwoLines) {
        if (warp == 0) {
            __syncthreads();
        } else {
            __syncthreads();
        }
    } else if (bug == kOneWarpOnly) {
        if (warp == 1) __syncthreads();
    } else if (bug != kSkippedByOneThread || tid != 50) {
        __syncthreads();
    }
    const int steps = bug == kDifferentCounts ? 2 + warp % 2 : 3;
    for (int step = 0; step < steps; ++step) {
        const int next = values[(tid + 1) % 96];
        __syncthreads();
        values[tid] = next;
        if (bug != kBarrierInLoopOfRaggedLength || tid < count) __syncthreads();
    }
    if (tid < count) out[tid] = values[tid];
}

void relay(int bug) {
    constexpr int kCount = 80;
    std::vector<int> x(kCount);
    for (int i = 0; i < kCount; ++i) x[i] = i * i;
    int* const out = device_array<int>(kCount);
    launch(LMO_KERNEL(relay_kernel), 1, 96, 0, nullptr, bug, out, device_copy(x), kCount);
    const auto got = host_copy(out, kCount);
    for (int i = 0; i < kCount; ++i) {
        expect_near("out", i, got[i], i + 3 < kCount ? x[i + 3] : 0, 0);
    }
}

// ---- what has to be found -----------------------------------------------------------------------

// clang-format off
LMO_BUG_TESTS(Exchange, exchange,
    // number                       what                                    plain    orders   asan     race
    {kNoSyncwarp,                   "missing syncwarp",                     kWrong,  kWrong,  kWrong,  "uninitialised|race"},
    {kShuffleInPlaceOfSyncwarp,     "shuffle in place of syncwarp",         kMissed, kMissed, kMissed, kRace},
    {kSyncwarpOfHalfTheWarp,        "syncwarp of half the warp",            kWrong,  kWrong,  kWrong,  "uninitialised|race"},
    {kNoSyncwarpBeforeOverwriting,  "missing syncwarp before overwriting",  kWrong,  kWrong,  kWrong,  kRace},
    {kSyncwarpAcrossWarps,          "syncwarp in place of a barrier",       kWrong,  kWrong,  kWrong,  "uninitialised|race"});

LMO_BUG_TESTS(Halves, halves,
    {kOwnLaneNotInMask,   "own lane not in the mask",             kMask,       kMask,       kMask,       kMask},
    {kSourceNotInMask,    "source lane not in the mask",          kMask,       kMask,       kMask,       kMask},
    {kEndedLaneInMask,    "mask names a lane that has ended",     "ended",     "ended",     "ended",     "ended"},
    {kFullMaskInBranch,   "full mask in a branch",                kDivergence, kDivergence, kDivergence, kDivergence},
    {kMasksDiffer,        "masks differ",                         "mask",      "mask",      "mask",      "mask"},
    {kKindsDiffer,        "one lane in another function",         kDivergence, kDivergence, kDivergence, kDivergence},
    {kProductInBranch,    "matrix product without one lane",      "diverge|ended", "diverge|ended", "diverge|ended", "diverge|ended"},
    {kBallotOfEnded,      "ballot without a lane that has ended", "ended",     "ended",     "ended",     "ended"},
    {kLadderWithoutWidth, "reduction over both halves",           "WRONG|diverge", "WRONG|diverge", "WRONG|diverge", "WRONG|diverge"});

LMO_BUG_TESTS(Relay, relay,
    {kTwoLines,           "divergent barriers on two lines",      kDivergence, kDivergence, kDivergence, kDivergence},
    {kOneWarpOnly,        "barrier of one warp only",             kDivergence, kDivergence, kDivergence, "diverge|uninitialised"},
    {kEarlyReturn,        "early return before a barrier",        kDivergence, kDivergence, kDivergence, kDivergence},
    {kDifferentCounts,    "different numbers of barriers",        kDivergence, kDivergence, kDivergence, kDivergence},
    {kBarrierInLoopOfRaggedLength, "barrier skipped past the end", kDivergence, kDivergence, kDivergence, kDivergence},
    {kSkippedByOneThread, "barrier skipped by one thread",        kDivergence, kDivergence, kDivergence, "diverge|uninitialised"});
// clang-format on

}  // namespace

}  // namespace lmo::cuda
