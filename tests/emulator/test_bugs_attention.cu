// Seeded bugs in a pipeline like flash attention's: blocks of keys and values arrive by cp.async in
// two stages while the softmax of the block before is computed online.
#include "llmc/cuda/ptx.cuh"
#include "tests/emulator/test_bugs.h"

namespace lmo::cuda {

namespace {

enum AttentionBug {
    kKeysBeyondTheEnd = 1,
    kWaitOneGroupShort,
    kNoBarrierAfterWait,
    kMaskOffByOne,
    kHalfOfTheQuad,
    kStageRefilledWhileRead,
    kStoredBeyondTheEnd,
    kOldSumNotRescaled,
    kTooLittleSharedMemory,
    kStageNotToggled,
    kNoCommit,
    kValuesNotTransposed,
};

constexpr int kThreads = 128;
constexpr int kBlock = 64;         // queries and keys of a block; a warp has 16 queries
constexpr int kHead = 32;          // head size
constexpr int kPitch = kHead + 8;  // elements of a row in shared memory
constexpr int kPart = kBlock * kPitch;
constexpr size_t kSharedBytes = 5 * kPart * sizeof(bf16);  // queries, two stages of keys and values

// What a warp knows of its queries: row 0 is lane / 4, row 1 is 8 further down.
struct Rows {
    uint32_t query[kHead / 16][4];
    float out[kHead / 8][4] = {};
    float top[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.0f, 0.0f};
};

__device__ void copy_rows(int bug, bf16* to, const bf16* from, int first, int length) {
    for (int i = threadIdx.x; i < kBlock * kHead / 8; i += kThreads) {
        const int r = i / (kHead / 8), c = i % (kHead / 8) * 8;
        const bool inside = first + r < length || bug == kKeysBeyondTheEnd;
        const int64_t at = inside ? int64_t{first + r} * kHead + c : 0;
        cp_async_16(to + r * kPitch + c, from + at, inside ? 16 : 0);
    }
}

// scores = Q K^T of 16 queries and 64 keys.
__device__ void multiply_keys(const Rows& rows, const bf16* keys, float (&scores)[kBlock / 8][4]) {
    const int lane = threadIdx.x % 32;
    for (int n = 0; n < kBlock / 16; ++n) {
        for (int k = 0; k < kHead / 16; ++k) {
            uint32_t b[4];
            const int row = n * 16 + lane % 8 + lane / 16 * 8;
            ldmatrix_x4(b, keys + row * kPitch + k * 16 + lane / 8 % 2 * 8);
            mma_m16n8k16<bf16>(scores[2 * n], rows.query[k], b[0], b[1]);
            mma_m16n8k16<bf16>(scores[2 * n + 1], rows.query[k], b[2], b[3]);
        }
    }
}

// scores becomes exp(scores - largest so far), 0 for later keys; the old sums are scaled to it.
__device__ void softmax_step(int bug, Rows& rows, float (&scores)[kBlock / 8][4], int query,
                             int key, float scale) {
    const int lane = threadIdx.x % 32;
    float top[2] = {rows.top[0], rows.top[1]}, sum[2] = {0.0f, 0.0f};
    for (int n = 0; n < kBlock / 8; ++n) {
        for (int e = 0; e < 4; ++e) {
            const int q = query + lane / 4 + e / 2 * 8, k = key + n * 8 + lane % 4 * 2 + e % 2;
            const bool seen = bug == kMaskOffByOne ? k < q : k <= q;
            scores[n][e] = seen ? scores[n][e] * scale : -INFINITY;
            top[e / 2] = fmaxf(top[e / 2], scores[n][e]);
        }
    }
    for (int r = 0; r < 2; ++r) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
        if (bug != kHalfOfTheQuad) top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
    }
    for (int n = 0; n < kBlock / 8; ++n) {
        for (int e = 0; e < 4; ++e) {
            scores[n][e] = scores[n][e] == -INFINITY ? 0.0f : expf(scores[n][e] - top[e / 2]);
            sum[e / 2] += scores[n][e];
        }
    }
    for (int r = 0; r < 2; ++r) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        const float old = top[r] == -INFINITY ? 1.0f : expf(rows.top[r] - top[r]);
        rows.sum[r] = rows.sum[r] * old + sum[r];
        rows.top[r] = top[r];
        if (bug == kOldSumNotRescaled) continue;
        for (int d = 0; d < kHead / 8; ++d) {
            rows.out[d][2 * r] *= old;
            rows.out[d][2 * r + 1] *= old;
        }
    }
}

// out += P V.
__device__ void multiply_values(int bug, Rows& rows, const bf16* values,
                                const float (&p)[kBlock / 8][4]) {
    const int lane = threadIdx.x % 32;
    for (int k = 0; k < kBlock / 16; ++k) {
        const float *low = p[2 * k], *high = p[2 * k + 1];
        const uint32_t a[4] = {pack_pair<bf16>(low[0], low[1]), pack_pair<bf16>(low[2], low[3]),
                               pack_pair<bf16>(high[0], high[1]),
                               pack_pair<bf16>(high[2], high[3])};
        for (int d = 0; d < kHead / 16; ++d) {
            uint32_t b[4];
            const bf16* row = values + (k * 16 + lane % 16) * kPitch + d * 16 + lane / 16 * 8;
            if (bug == kValuesNotTransposed)
                ldmatrix_x4(b, row);
            else
                ldmatrix_x4_transposed(b, row);
            mma_m16n8k16<bf16>(rows.out[2 * d], a, b[0], b[1]);
            mma_m16n8k16<bf16>(rows.out[2 * d + 1], a, b[2], b[3]);
        }
    }
}

__device__ void store_rows(int bug, const Rows& rows, bf16* out, int query, int length) {
    const int lane = threadIdx.x % 32;
    for (int r = 0; r < 2; ++r) {
        const int q = query + lane / 4 + r * 8;
        if (q >= length && bug != kStoredBeyondTheEnd) continue;
        for (int d = 0; d < kHead / 8; ++d) {
            Vector<bf16, 2> pair;
            pair[0] = from_float<bf16>(rows.out[d][2 * r] / rows.sum[r]);
            pair[1] = from_float<bf16>(rows.out[d][2 * r + 1] / rows.sum[r]);
            store(out + int64_t{q} * kHead + d * 8 + lane % 4 * 2, pair);
        }
    }
}

// out = softmax(scale Q K^T, causal) V for one head; all (length x 32). A block has 64 queries.
__global__ void attention_kernel(int bug, bf16* out, const bf16* q, const bf16* k, const bf16* v,
                                 int length, float scale) {
    LMO_DYNAMIC_SHARED(bf16, queries);
    bf16 *const keys = queries + kPart, *const values = keys + 2 * kPart;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const int first = blockIdx.x * kBlock, blocks = blockIdx.x + 1;
    const auto copy = [&](int block) {
        if (block < blocks) {
            const int stage = bug == kStageNotToggled ? 0 : block % 2;
            copy_rows(bug, keys + stage * kPart, k, block * kBlock, length);
            copy_rows(bug, values + stage * kPart, v, block * kBlock, length);
        }
        if (bug != kNoCommit || block == 0) cp_async_commit();
    };
    Rows rows;
    copy_rows(bug, queries, q, first, length);
    copy(0);
    for (int block = 0; block < blocks; ++block) {
        copy(block + 1);
        if (bug == kWaitOneGroupShort)
            cp_async_wait<2>();
        else
            cp_async_wait<1>();
        if (bug != kNoBarrierAfterWait) __syncthreads();
        for (int i = 0; block == 0 && i < kHead / 16; ++i) {
            ldmatrix_x4(rows.query[i],
                        queries + (warp_row + lane % 16) * kPitch + i * 16 + lane / 16 * 8);
        }
        const int stage = bug == kStageNotToggled ? 0 : block % 2;
        float scores[kBlock / 8][4] = {};
        multiply_keys(rows, keys + stage * kPart, scores);
        softmax_step(bug, rows, scores, first + warp_row, block * kBlock, scale);
        multiply_values(bug, rows, values + stage * kPart, scores);
        if (bug != kStageRefilledWhileRead) __syncthreads();
    }
    store_rows(bug, rows, out, first + warp_row, length);
}

std::vector<double> reference(const std::vector<bf16>& q, const std::vector<bf16>& k,
                              const std::vector<bf16>& v, int length, double scale) {
    std::vector<double> out(static_cast<size_t>(length) * kHead);
    for (int i = 0; i < length; ++i) {
        double sum = 0;
        for (int j = 0; j <= i; ++j) {
            double score = 0;
            for (int d = 0; d < kHead; ++d) {
                score += double{to_float(q[i * kHead + d])} * to_float(k[j * kHead + d]);
            }
            const double weight = std::exp(score * scale);
            sum += weight;
            for (int d = 0; d < kHead; ++d) {
                out[i * kHead + d] += weight * to_float(v[j * kHead + d]);
            }
        }
        for (int d = 0; d < kHead; ++d) out[i * kHead + d] /= sum;
    }
    return out;
}

// Scores of some size, so that the largest one matters.
constexpr float kScale = 3.0f;

void attention(int bug) {
    for (const int length : {40, 200}) {
        const size_t count = static_cast<size_t>(length) * kHead;
        const auto q = some_values<bf16>(count, 6), k = some_values<bf16>(count, 7),
                   v = some_values<bf16>(count, 8);
        bf16* const out = device_array<bf16>(count);
        const size_t shared =
            kSharedBytes - (bug == kTooLittleSharedMemory ? kPart * sizeof(bf16) : 0);
        launch(LMO_KERNEL(attention_kernel), div_up(length, kBlock), kThreads, shared, nullptr, bug,
               out, device_copy(q), device_copy(k), device_copy(v), length, kScale);
        const auto got = host_copy(out, count);
        const auto expected = reference(q, k, v, length, kScale);
        for (size_t i = 0; i < count; ++i) {
            expect_near("out", static_cast<int64_t>(i), to_float(got[i]), expected[i], 2e-2);
        }
    }
}

// ---- what has to be found -----------------------------------------------------------------------

constexpr const char* kAsync = "cp.async";

// clang-format off
LMO_BUG_TESTS(Attention, attention,
    // number                 what                                plain     orders    asan      race
    {kKeysBeyondTheEnd,       "keys beyond the end",              kBounds,  kBounds,  kBounds,  kBounds},
    {kWaitOneGroupShort,      "wait for one group too few",       kWrong,   kWrong,   kWrong,   kAsync},
    {kNoBarrierAfterWait,     "no barrier after the wait",        kWrong,   kWrong,   kWrong,   kRace},
    {kMaskOffByOne,           "causal mask off by one",           kWrong,   kWrong,   kWrong,   kWrong},
    {kHalfOfTheQuad,          "half of the quad reduced",         kWrong,   kWrong,   kWrong,   kWrong},
    {kStageRefilledWhileRead, "stage refilled while it is read",  kMissed,  kWrong,   kMissed,  kRace},
    {kStoredBeyondTheEnd,     "stored beyond the end",            kOutside, kOutside, kAsan,    kBounds},
    {kOldSumNotRescaled,      "old sum not rescaled",             kWrong,   kWrong,   kWrong,   kWrong},
    {kTooLittleSharedMemory,  "too little dynamic shared memory", kOutside, kOutside, kOutside, kOutside},
    {kStageNotToggled,        "both stages in one place",         kMissed,  kWrong,   kMissed,  kAsync},
    {kNoCommit,               "copies not committed",             kWrong,   kWrong,   kWrong,   kAsync},
    {kValuesNotTransposed,    "values not transposed",            kWrong,   kWrong,   kWrong,   kWrong});
// clang-format on

}  // namespace

}  // namespace lmo::cuda
