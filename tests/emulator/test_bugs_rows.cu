// Seeded bugs in kernels that reduce a row of a matrix in a block: RMSNorm forward and backward,
// and softmax with cross-entropy in place.
#include "tests/emulator/test_bugs.h"

namespace lmo::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kRows = 9, kColumns = 200;
constexpr float kEps = 1e-5f;

__device__ float dot(const Vector<bf16, 8>& a, const Vector<bf16, 8>& b) {
    float sum = 0.0f;
    for (int k = 0; k < 8; ++k) sum += to_float(a[k]) * to_float(b[k]);
    return sum;
}

// ---- RMSNorm ------------------------------------------------------------------------------------

enum NormBug {
    kNoBarrierAfterPartialSums = 1,
    kShuffleInBranch,
    kShortMask,
    kIncompleteButterfly,
    kMissingPartialSums,
    kVectorPastTheRow,
    kThreadsLeaveEarly,
    kBarrierInBranch,
    kFarPastTheEnd,
};

// The sum over the block, for all its threads.
__device__ float sum_of_block(int bug, float value, float* scratch) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    value = warp_sum(value);
    if (lane == 0 && (bug != kMissingPartialSums || warp == 0)) scratch[warp] = value;
    if (bug != kNoBarrierAfterPartialSums) __syncthreads();
    float sum = lane < kWarps ? scratch[lane] : 0.0f;
    if (bug == kShuffleInBranch && lane < 16) sum += __shfl_xor_sync(kAllLanes, sum, 16);
    if (bug == kShortMask) return sum + __shfl_down_sync(0x0000ffffu, sum, 1);
    if (bug == kIncompleteButterfly) return sum + __shfl_xor_sync(kAllLanes, sum, 1);
    return warp_sum(sum);
}

// y = x rstd weight, rstd = 1 / sqrt(mean(x^2) + eps).
__global__ void norm_kernel(int bug, bf16* y, float* rstd, const bf16* x, const bf16* weight,
                            int columns) {
    LMO_SHARED(float, scratch, [kWarps]);
    const bf16* const from = x + int64_t{blockIdx.x} * columns;
    bf16* const to = y + int64_t{blockIdx.x} * columns;
    const int past = bug == kVectorPastTheRow ? 8 : bug == kFarPastTheEnd ? 16384 : 0;
    float sum = 0.0f;
    for (int c = threadIdx.x * 8; c < columns + past; c += kThreads * 8) {
        const auto vector = load<8>(from + c);
        sum += dot(vector, vector);
    }
    if (bug == kThreadsLeaveEarly && threadIdx.x >= 96) return;
    if (bug == kBarrierInBranch && threadIdx.x < 64) __syncthreads();
    sum = sum_of_block(bug, sum, scratch);
    const float scale = 1.0f / sqrtf(sum / columns + kEps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
    for (int c = threadIdx.x * 8; c < columns; c += kThreads * 8) {
        auto vector = load<8>(from + c);
        const auto weights = load<8>(weight + c);
        for (int k = 0; k < 8; ++k) {
            vector[k] = from_float<bf16>(to_float(vector[k]) * scale * to_float(weights[k]));
        }
        store(to + c, vector);
    }
}

struct NormData {
    std::vector<bf16> x = some_values<bf16>(kRows * kColumns, 1);
    std::vector<bf16> weight = some_values<bf16>(kColumns, 2);
    std::vector<bf16> dy = some_values<bf16>(kRows * kColumns, 3);
    std::vector<float> rstd;

    NormData() {
        for (int r = 0; r < kRows; ++r) {
            double sum = 0;
            for (int c = 0; c < kColumns; ++c) sum += x_at(r, c) * x_at(r, c);
            rstd.push_back(static_cast<float>(1 / std::sqrt(sum / kColumns + kEps)));
        }
    }
    double x_at(int r, int c) const { return to_float(x[r * kColumns + c]); }
    double dy_at(int r, int c) const { return to_float(dy[r * kColumns + c]); }
    double w_at(int c) const { return to_float(weight[c]); }
};

void norm(int bug) {
    const NormData data;
    bf16* const y = device_array<bf16>(kRows * kColumns);
    float* const rstd = device_array<float>(kRows);
    launch(LMO_KERNEL(norm_kernel), kRows, kThreads, 0, nullptr, bug, y, rstd, device_copy(data.x),
           device_copy(data.weight), kColumns);
    const auto got_rstd = host_copy(rstd, kRows);
    const auto got = host_copy(y, kRows * kColumns);
    for (int r = 0; r < kRows; ++r) {
        expect_near("rstd", r, got_rstd[r], data.rstd[r], 1e-5);
        for (int c = 0; c < kColumns; ++c) {
            expect_near("y", r * kColumns + c, to_float(got[r * kColumns + c]),
                        data.x_at(r, c) * data.rstd[r] * data.w_at(c), 1e-2);
        }
    }
}

// ---- RMSNorm backward ---------------------------------------------------------------------------

enum NormBackwardBug { kNotZeroed = 101, kScratchReused, kPlainAdd, kUninitialisedInput };

// dx = rstd (w dy - x^ mean(w dy x^)), x^ = x rstd; dw += dy x^ over all rows, collected by a block
// in shared memory first.
__global__ void norm_backward_kernel(int bug, bf16* dx, float* dw, const bf16* dy, const bf16* x,
                                     const bf16* weight, const float* rstd, int rows, int columns) {
    LMO_SHARED(float, scratch, [kWarps]);
    LMO_DYNAMIC_SHARED(float, sums);
    if (bug != kNotZeroed) {
        for (int c = threadIdx.x; c < columns; c += kThreads) sums[c] = 0.0f;
    }
    __syncthreads();
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const int64_t at = int64_t{row} * columns;
        const float scale = rstd[row];
        float sum = 0.0f;
        for (int c = threadIdx.x; c < columns; c += kThreads) {
            sum += to_float(x[at + c]) * scale * to_float(dy[at + c]) * to_float(weight[c]);
        }
        const float mean = sum_of_block(bug, sum, scratch) / columns;
        for (int c = threadIdx.x; c < columns; c += kThreads) {
            const float normal = to_float(x[at + c]) * scale, d = to_float(dy[at + c]);
            sums[c] += d * normal;
            dx[at + c] = from_float<bf16>(scale * (d * to_float(weight[c]) - normal * mean));
        }
        // The next row writes scratch anew.
        if (bug != kScratchReused) __syncthreads();
    }
    for (int c = threadIdx.x; c < columns; c += kThreads) {
        if (bug == kPlainAdd)
            dw[c] += sums[c];
        else
            atomicAdd(&dw[c], sums[c]);
    }
}

void norm_backward(int bug) {
    const NormData data;
    bf16* const dx = device_array<bf16>(kRows * kColumns);
    float* const dw = device_array<float>(kColumns);
    if (bug != kUninitialisedInput) check(cudaMemset(dw, 0, kColumns * sizeof(float)), "zeroing");
    launch(LMO_KERNEL(norm_backward_kernel), 3, kThreads, kColumns * sizeof(float), nullptr, bug,
           dx, dw, device_copy(data.dy), device_copy(data.x), device_copy(data.weight),
           device_copy(data.rstd), kRows, kColumns);
    const auto got = host_copy(dx, kRows * kColumns);
    const auto got_dw = host_copy(dw, kColumns);
    std::vector<double> sums(kColumns);
    for (int r = 0; r < kRows; ++r) {
        const double scale = data.rstd[r];
        double mean = 0;
        for (int c = 0; c < kColumns; ++c) {
            mean += data.x_at(r, c) * scale * data.dy_at(r, c) * data.w_at(c) / kColumns;
            sums[c] += data.dy_at(r, c) * data.x_at(r, c) * scale;
        }
        for (int c = 0; c < kColumns; ++c) {
            const double expected =
                scale * (data.dy_at(r, c) * data.w_at(c) - data.x_at(r, c) * scale * mean);
            expect_near("dx", r * kColumns + c, to_float(got[r * kColumns + c]), expected, 1e-2);
        }
    }
    for (int c = 0; c < kColumns; ++c) expect_near("dw", c, got_dw[c], sums[c], 1e-3);
}

// ---- softmax and cross-entropy in place ---------------------------------------------------------

enum ClassifierBug {
    kPaddingCounted = 1,
    kSumsNotWritten,
    kNoBarrierAfterMaxima,
    kHalfTheWarps,
    kOverwrittenTooEarly,
    kOneVectorTooMany,
    kTargetOutOfRange,
};

constexpr int kClasses = 1021, kStride = 1040;

// One thread's largest logit and its sum of exp(logit - largest).
__device__ void row_maximum(int bug, const bf16* row, float& top, float& sum) {
    const int end = bug == kPaddingCounted ? kStride : kClasses;
    for (int c = threadIdx.x * 8; c < end; c += kThreads * 8) {
        const auto vector = load<8>(row + c);
        for (int k = 0; k < 8 && c + k < end; ++k) {
            const float logit = to_float(vector[k]);
            if (logit > top) {
                sum *= expf(top - logit);
                top = logit;
            }
            sum += expf(logit - top);
        }
    }
}

// Combines the threads' pairs.
__device__ void combine(int bug, float* tops, float* sums, float& top, float& sum) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float warp_top = warp_max(top);
    sum = warp_sum(top == -INFINITY ? 0.0f : sum * expf(top - warp_top));
    if (lane == 0) {
        tops[warp] = warp_top;
        if (bug != kSumsNotWritten || warp == 0) sums[warp] = sum;
    }
    if (bug != kNoBarrierAfterMaxima) __syncthreads();
    const int warps = bug == kHalfTheWarps ? kWarps / 2 : kWarps;
    const float own = lane < warps ? tops[lane] : -INFINITY;
    top = warp_max(own);
    sum = warp_sum(lane < warps ? sums[lane] * expf(own - top) : 0.0f);
}

// losses = log(sum(exp(row))) - row[target]; row = softmax(row) - onehot(target), padding 0.
__global__ void classifier_kernel(int bug, bf16* logits, float* losses, const int* targets) {
    LMO_SHARED(float, tops, [kWarps]);
    LMO_SHARED(float, sums, [kWarps]);
    bf16* const row = logits + int64_t{blockIdx.x} * kStride;
    const int target = targets[blockIdx.x] + (bug == kTargetOutOfRange ? 1 << 20 : 0);
    float top = -INFINITY, sum = 0.0f;
    row_maximum(bug, row, top, sum);
    combine(bug, tops, sums, top, sum);
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) + top - to_float(row[target]);
    if (bug != kOverwrittenTooEarly) __syncthreads();
    const int end = bug == kOneVectorTooMany ? kStride + 8 : kStride;
    for (int c = threadIdx.x * 8; c < end; c += kThreads * 8) {
        auto vector = load<8>(row + c);
        for (int k = 0; k < 8; ++k) {
            const float p = expf(to_float(vector[k]) - top) / sum;
            const float gradient = p - (c + k == target ? 1.0f : 0.0f);
            vector[k] = from_float<bf16>(c + k < kClasses ? gradient : 0.0f);
        }
        store(row + c, vector);
    }
}

void classifier(int bug) {
    constexpr int kCount = 6;
    auto logits = some_values<bf16>(kCount * kStride, 4);
    const std::vector<int> targets = {0, kClasses - 1, 17, 512, 1000, 16};
    bf16* const device = device_copy(logits);
    float* const losses = device_array<float>(kCount);
    launch(LMO_KERNEL(classifier_kernel), kCount, kThreads, 0, nullptr, bug, device, losses,
           device_copy(targets));
    const auto got_losses = host_copy(losses, kCount);
    const auto got = host_copy(device, kCount * kStride);
    for (int r = 0; r < kCount; ++r) {
        const bf16* const row = &logits[r * kStride];
        double sum = 0;
        for (int c = 0; c < kClasses; ++c) sum += std::exp(to_float(row[c]));
        expect_near("loss", r, got_losses[r], std::log(sum) - to_float(row[targets[r]]), 1e-4);
        for (int c = 0; c < kStride; ++c) {
            const double p = c < kClasses ? std::exp(to_float(row[c])) / sum : 0.0;
            expect_near("gradient", r * kStride + c, to_float(got[r * kStride + c]),
                        p - (c == targets[r]), 4e-3);
        }
    }
}

// ---- what has to be found -----------------------------------------------------------------------

// clang-format off
LMO_BUG_TESTS(Norm, norm,
    // number                    what                              plain        orders       asan         race
    {kNoBarrierAfterPartialSums, "no barrier after partial sums",  kWrong,      kWrong,      kWrong,      kUninitialised},
    {kShuffleInBranch,           "full mask shuffle in a branch",  kDivergence, kDivergence, kDivergence, kDivergence},
    {kShortMask,                 "shuffle mask without the caller", kMask,      kMask,       kMask,       kMask},
    {kIncompleteButterfly,       "incomplete butterfly",           kWrong,      kWrong,      kWrong,      kWrong},
    {kMissingPartialSums,        "shared partial sums missing",    kWrong,      kWrong,      kWrong,      kUninitialised},
    {kVectorPastTheRow,          "one vector past the row",        kWrong,      kWrong,      kAsan,       kBounds},
    {kThreadsLeaveEarly,         "threads exit before a barrier",  kDivergence, kDivergence, kDivergence, kDivergence},
    {kBarrierInBranch,           "barrier in a branch",            kDivergence, kDivergence, kDivergence, kDivergence},
    {kFarPastTheEnd,             "far past the end",               kOutside,    kOutside,    kAsan,       kBounds});

LMO_BUG_TESTS(NormBackward, norm_backward,
    {kNotZeroed,          "shared accumulators not zeroed",        kWrong,  kWrong,  kWrong,  kUninitialised},
    {kScratchReused,      "shared memory reused without a barrier", kMissed, kMissed, kMissed, kRace},
    {kPlainAdd,           "plain addition across blocks",          kMissed, kMissed, kMissed, kRace},
    {kUninitialisedInput, "global accumulators not zeroed",        kWrong,  kWrong,  kWrong,  kUninitialised});

LMO_BUG_TESTS(Classifier, classifier,
    {kPaddingCounted,       "padding columns counted",             kWrong,  kWrong,  kWrong,  kWrong},
    {kSumsNotWritten,       "shared sums not written",             kWrong,  kWrong,  kWrong,  kUninitialised},
    {kNoBarrierAfterMaxima, "no barrier after maxima and sums",    kWrong,  kWrong,  kWrong,  kUninitialised},
    {kHalfTheWarps,         "half of the warps combined",          kWrong,  kWrong,  kWrong,  kWrong},
    {kOverwrittenTooEarly,  "logit overwritten before it is read", kMissed, kWrong,  kMissed, kRace},
    {kOneVectorTooMany,     "one vector past the row",             kWrong, "WRONG|overrun", kAsan,   "out of bounds|race"},
    {kTargetOutOfRange,     "class index far out of range",        kOutside, kOutside, kAsan, kBounds});
// clang-format on

}  // namespace

}  // namespace lmo::cuda
