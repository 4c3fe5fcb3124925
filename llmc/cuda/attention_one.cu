// Attention of the last of T positions alone: out [H D] from qkv [1, T, (H + 2K) D].
//
// A block of 8 warps has a query head. Scores: warp w takes positions w, w + 8, ...; its lanes
// share the columns of a key, and the scores stay in the workspace (fp32, [H, T]). The largest
// score and the sum of the weights are block reductions. Results: 32 columns at a time, warp w sums
// its positions for them, and the eight sums are added in the order of the warps. Arithmetic in
// fp32, every sum in a fixed order.
//
// Memory traffic: the keys and values of a head once for each query head that shares them, 4 T D
// bytes a head in bf16; the second reader of a group finds them in the L2 cache. Text grows by one
// position, so H blocks are all there is: the matrices of the layer are the larger part of the
// time.
#include "llmc/cuda/attention.cuh"
#include "llmc/cuda/cuda_backend.h"

namespace lmo::cuda {

namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;

// `score` of the last query with every position, then weight exp(score - largest); returns the sum
// of the weights. scores [T] are this head's; `scratch` holds a value of each warp.
template <typename T>
__device__ float weigh(const T* qkv, float* scores, const AttentionHeads& heads, float* scratch) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.x;
    const T* const query = qkv + heads.query(0, heads.positions - 1, head);
    float top = -INFINITY;
    for (int t = warp; t < heads.positions; t += kWarps) {
        const T* const key = qkv + heads.key(0, t, head / heads.group());
        float score = 0.0f;
        for (int d = lane; d < heads.size; d += 32) {
            score = fmaf(to_float(query[d]), to_float(key[d]), score);
        }
        score = warp_sum(score) * heads.scale;
        if (lane == 0) scores[t] = score;
        top = fmaxf(top, score);
    }
    top = block_max<kThreads>(top, scratch);
    __syncthreads();  // scratch is free again, and the scores are written
    float total = 0.0f;
    for (int t = threadIdx.x; t < heads.positions; t += kThreads) {
        const float weight = expf(scores[t] - top);
        scores[t] = weight;
        total += weight;
    }
    return block_sum<kThreads>(total, scratch);  // all weights are written before it is known
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    attention_one_kernel(const T* qkv, T* out, float* workspace, const AttentionHeads heads) {
    LMO_SHARED(float, scratch, [kWarps]);
    LMO_SHARED(float, sums, [kWarps][32]);
    wait_for_previous();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.x;
    float* const weights = workspace + int64_t{head} * heads.positions;
    const float total = weigh(qkv, weights, heads, scratch);

    for (int first = 0; first < heads.size; first += 32) {
        const int d = first + lane;
        float sum = 0.0f;
        for (int t = warp; t < heads.positions && d < heads.size; t += kWarps) {
            const T* const value = qkv + heads.value(0, t, head / heads.group());
            sum = fmaf(weights[t], to_float(value[d]), sum);
        }
        sums[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && d < heads.size) {
            sum = sums[0][lane];
#pragma unroll
            for (int w = 1; w < kWarps; ++w) sum += sums[w][lane];
            out[int64_t{head} * heads.size + d] = from_float<T>(sum / total);
        }
        __syncthreads();  // before the next columns
    }
}

}  // namespace

size_t CudaBackend::workspace_bytes(const AttentionOne& op) const {
    return static_cast<size_t>(op.qkv.shape[1]) * static_cast<size_t>(op.heads) * sizeof(float);
}

void CudaBackend::attention_one(const AttentionOne& op) {
    const AttentionHeads heads(op.qkv, op.heads, op.kv_heads);
    assert(heads.batch == 1 && heads.positions > 0);
    assert(op.out.dtype == op.qkv.dtype && op.out.count() == heads.out_stride());
    assert(op.workspace.bytes() >= workspace_bytes(op));
    for_compute_type(op.qkv.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        launch(LMO_KERNEL(attention_one_kernel<T>), heads.heads, kThreads, 0, stream_,
               op.qkv.as<T>(), op.out.as<T>(), op.workspace.as<float>(), heads);
    });
}

}  // namespace lmo::cuda
