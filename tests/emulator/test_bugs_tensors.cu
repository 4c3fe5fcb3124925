// Seeded bugs in elementwise kernels over many tensors (vectors of 16 bytes and ragged tails) and
// in a sum over all elements in two launches.
#include "tests/emulator/test_bugs.h"

namespace lmo::cuda {

namespace {

// ---- an optimizer's update ----------------------------------------------------------------------

enum UpdateBug {
    kVectorsOverlap = 1,
    kTailPastTheEnd,
    kVectorInTheTail,
    kMisalignedTensor,
    kWrongTensor,
    kStateNotSet,
    kFreedState,
    kNoBoundsCheck,
};

constexpr int kTensors = 4;
constexpr int kUpdateThreads = 64;
constexpr int kChunk = kUpdateThreads * 8;  // elements of a block

struct Tensors {
    float* w[kTensors];
    bf16* m[kTensors];
    const bf16* g[kTensors];
    int64_t count[kTensors];
    int first_block[kTensors + 1];
};

struct Rates {
    float lr = 0.1f, beta = 0.9f, decay = 0.01f;
};

__device__ void update_one(const Rates& rates, float& w, bf16& m, bf16 g) {
    const float mixed = rates.beta * to_float(m) + (1 - rates.beta) * to_float(g);
    const float direction = mixed > 0 ? 1.0f : mixed < 0 ? -1.0f : 0.0f;
    w -= rates.lr * (direction + rates.decay * w);
    m = from_float<bf16>(mixed);
}

// m = beta m + (1 - beta) g; w -= lr (sign(m) + decay w).
__global__ void update_kernel(int bug, const __grid_constant__ Tensors tensors, Rates rates) {
    int t = 0;
    while (static_cast<int>(blockIdx.x) >= tensors.first_block[t + 1]) ++t;
    if (bug == kWrongTensor && t == 2) t = 1;
    const int64_t offset = bug == kMisalignedTensor ? 1 : 0;
    float* const w = tensors.w[t] + offset;
    bf16* const m = tensors.m[t] + offset;
    const bf16* const g = tensors.g[t] + offset;
    const int64_t count = tensors.count[t] - offset;
    const int64_t chunk = blockIdx.x - (bug == kNoBoundsCheck ? 0 : tensors.first_block[t]);
    const int64_t at = chunk * kChunk + threadIdx.x * (bug == kVectorsOverlap ? 4 : 8);
    if (at + 8 <= count || (bug == kVectorInTheTail && at < count)) {
        auto momentum = load<8>(m + at);
        const auto gradient = load<8>(g + at);
        Vector<float, 4> halves[2] = {load<4>(w + at), load<4>(w + at + 4)};
        for (int k = 0; k < 8; ++k) {
            update_one(rates, halves[k / 4][k % 4], momentum[k], gradient[k]);
        }
        store(m + at, momentum);
        store(w + at, halves[0]);
        store(w + at + 4, halves[1]);
    } else if (at < count || bug == kNoBoundsCheck) {
        const int64_t end = bug == kTailPastTheEnd || bug == kNoBoundsCheck ? at + 8 : count;
        for (int64_t i = at; i < end; ++i) update_one(rates, w[i], m[i], g[i]);
    }
}

void update(int bug) {
    const int64_t counts[kTensors] = {1000, 8, 2000, 3};
    Tensors tensors{};
    std::vector<float> w[kTensors];
    std::vector<bf16> m[kTensors], g[kTensors];
    for (int t = 0; t < kTensors; ++t) {
        const size_t count = static_cast<size_t>(counts[t]);
        w[t] = some_values<float>(count, 10 + t);
        m[t] = some_values<bf16>(count, 20 + t);
        g[t] = some_values<bf16>(count, 30 + t);
        tensors.w[t] = device_copy(w[t]);
        const bool set = bug != kStateNotSet || t != 2;
        tensors.m[t] = set ? device_copy(m[t]) : device_array<bf16>(m[t].size());
        tensors.g[t] = device_copy(g[t]);
        tensors.count[t] = counts[t];
        const int blocks = static_cast<int>(div_up<int64_t>(counts[t], kChunk));
        tensors.first_block[t + 1] = tensors.first_block[t] + blocks;
    }
    if (bug == kFreedState) {
        check(cudaFree(tensors.m[3]), "freeing");
        std::erase(allocations(), static_cast<void*>(tensors.m[3]));
    }
    const Rates rates;
    launch(LMO_KERNEL(update_kernel), tensors.first_block[kTensors], kUpdateThreads, 0, nullptr,
           bug, tensors, rates);
    for (int t = 0; t < kTensors; ++t) {
        const auto got_w = host_copy(tensors.w[t], w[t].size());
        const auto got_m = host_copy(tensors.m[t], m[t].size());
        for (size_t i = 0; i < w[t].size(); ++i) {
            update_one(rates, w[t][i], m[t][i], g[t][i]);
            expect_near("w", static_cast<int64_t>(i), got_w[i], w[t][i], 1e-6);
            expect_near("m", static_cast<int64_t>(i), to_float(got_m[i]), to_float(m[t][i]), 1e-2);
        }
    }
}

// ---- a sum of squares in two launches -----------------------------------------------------------

enum SumBug {
    kTailReadBeyondTheEnd = 101,
    kTreeWithoutBarriers,
    kNoLastBarrier,
    kIncompleteShuffles,
    kOnePartTooMany,
    kSharedBeyondTheEnd,
    kOneBlockTooFew,
    kSharedUnderflow,
};

constexpr int kSumThreads = 128;

// parts[block] = the sum of the squares of the block's share of x, by a tree in shared memory.
__global__ void squares_kernel(int bug, float* parts, const bf16* x, int64_t count) {
    LMO_SHARED(float, sums, [kSumThreads]);
    const int tid = threadIdx.x;
    float sum = 0.0f;
    for (int64_t at = (int64_t{blockIdx.x} * kSumThreads + tid) * 8; at < count;
         at += int64_t{gridDim.x} * kSumThreads * 8) {
        if (at + 8 <= count || bug == kTailReadBeyondTheEnd) {
            const auto vector = load_streaming<8>(x + at);
            for (int k = 0; k < 8; ++k) sum += to_float(vector[k]) * to_float(vector[k]);
        } else {
            for (int64_t i = at; i < count; ++i) sum += to_float(x[i]) * to_float(x[i]);
        }
    }
    sums[tid - (bug == kSharedUnderflow ? 4 : 0)] = sum;
    if (bug == kSharedUnderflow && tid < 4) sums[kSumThreads - 4 + tid] = 0.0f;
    for (int half = kSumThreads / 2; half >= 32; half /= 2) {
        if (bug != kTreeWithoutBarriers) __syncthreads();
        if (tid < half) sums[tid] += sums[tid + half];
    }
    // From here on a thread of the first warp reads only what it wrote itself.
    if (bug != kNoLastBarrier) __syncthreads();
    if (tid >= 32) return;
    float total = sums[tid];
    const int last = bug == kIncompleteShuffles ? 2 : 1;
    for (int step = 16; step >= last; step /= 2) {
        total += __shfl_down_sync(0xffffffffu, total, step);
    }
    if (tid == 0) parts[blockIdx.x] = total;
}

// out = the sum of the parts.
__global__ void add_parts_kernel(int bug, float* out, const float* parts, int count) {
    LMO_SHARED(float, sums, [kSumThreads / 32]);
    const int tid = threadIdx.x, end = bug == kOnePartTooMany ? count + 1 : count;
    float sum = 0.0f;
    for (int i = tid; i < end; i += kSumThreads) sum += parts[i];
    sum = warp_sum(sum);
    if (tid % 32 == 0) sums[tid / 32] = sum;
    __syncthreads();
    if (tid >= 32) return;
    const bool inside = tid < kSumThreads / 32 || bug == kSharedBeyondTheEnd;
    const float total = warp_sum(inside ? sums[tid] : 0.0f);
    if (tid == 0) *out = total;
}

void sum(int bug) {
    constexpr int kCount = 10003, kBlocks = 9;
    const auto x = some_values<bf16>(kCount, 9);
    float* const parts = device_array<float>(kBlocks);
    float* const out = device_array<float>(1);
    const int blocks = bug == kOneBlockTooFew ? kBlocks - 1 : kBlocks;
    launch(LMO_KERNEL(squares_kernel), blocks, kSumThreads, 0, nullptr, bug, parts, device_copy(x),
           kCount);
    launch(LMO_KERNEL(add_parts_kernel), 1, kSumThreads, 0, nullptr, bug, out, parts, kBlocks);
    double expected = 0;
    for (const bf16 value : x) expected += double{to_float(value)} * to_float(value);
    expect_near("sum", 0, host_copy(out, 1)[0], expected, 1e-5);
}

// ---- what has to be found -----------------------------------------------------------------------

// clang-format off
LMO_BUG_TESTS(Update, update,
    // number           what                            plain       orders      asan        race
    {kVectorsOverlap,   "vectors overlap",              kAlignment, kAlignment, kAlignment, kAlignment},
    {kTailPastTheEnd,   "tail past the end",            kOutside,   kOutside,   kAsan,      kBounds},
    {kVectorInTheTail,  "vector in the ragged tail",    kOutside,   kOutside,   kAsan,      kBounds},
    {kMisalignedTensor, "misaligned tensor",            kAlignment, kAlignment, kAlignment, kAlignment},
    {kWrongTensor,      "two blocks on one tensor",     kWrong,     kWrong,     kWrong,     "WRONG|race"},
    {kStateNotSet,      "uninitialised state",          kWrong,     kWrong,     kWrong,     kUninitialised},
    {kFreedState,       "use after free",               kOutside,   kOutside,   kAsan,      kBounds},
    {kNoBoundsCheck,    "far past the end",             kOutside,   kOutside,   kAsan,      kBounds});

LMO_BUG_TESTS(Sum, sum,
    {kTailReadBeyondTheEnd, "tail read beyond the end",          kMissed, kMissed, kAsan,   kBounds},
    {kTreeWithoutBarriers,  "tree without barriers",             kWrong,  kWrong,  kWrong,  kUninitialised},
    {kNoLastBarrier,        "last barrier is not needed",        kClean,  kClean,  kClean,  kClean},
    {kIncompleteShuffles,   "incomplete shuffles downwards",     kWrong,  kWrong,  kWrong,  kWrong},
    {kOnePartTooMany,       "one part too many",                 kMissed, kMissed, kAsan,   kBounds},
    {kSharedBeyondTheEnd,   "shared memory read out of bounds",  kOutside, kOutside, kAsan,   kBounds},
    {kOneBlockTooFew,       "a part is never written",           kWrong,  kWrong,  kWrong,  kUninitialised},
    {kSharedUnderflow,      "shared memory written before its beginning", kWrong, kWrong, kAsan, kBounds});
// clang-format on

}  // namespace

}  // namespace lmo::cuda
