// Causal attention, backward, without tensor cores: see attention_general.cuh.
//
// As on the CPU, P is exp(score - lse) divided by its sum, because the rounding of a large lse
// would be a factor common to the row, and delta = sum_s P_ts dP_ts: a query with one key gets no
// gradient, exactly. Three kernels, no atomics:
//  * rows: 1 / sum and delta of every row, to the workspace, [B, H, T] pairs;
//  * dQ of 64 queries; dK and dV of 64 keys, over all heads of the group in turn.
// FLOPs of a visible pair (t, s), D <= 64: 18 D, of which 10 D are counted (rows: S, dP; dQ: S, dP,
// dS K; dK, dV: S, dP, P^T dO, dS^T Q). 35 to 70 KB of shared memory, at most 128 registers: 2
// blocks of 256 threads an SM.
#include "llmc/cuda/attention_general.cuh"

namespace lmo::cuda {

namespace {

using namespace general;

// exp(score - lse), zero where the key is not visible.
__device__ __forceinline__ float weight(float s, float scale, float lse, bool visible) {
    return visible ? expf(scaled(s, scale) - lse) : 0.0f;
}

// (1 / sum, delta) of each row, for both kernels behind this one.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) general_row_kernel(const GeneralArguments<T> p) {
    LMO_DYNAMIC_SHARED(float, shared);
    wait_for_previous();
    float *const a_tile = shared, *const b_tile = shared + kArea;
    const AttentionHeads& heads = p.heads;
    const int positions = heads.positions, tiles = div_up(positions, kTile);
    const AttentionItem item(tiles, heads.heads);
    const Views<T> views{p, item.batch};
    const int q0 = (tiles - 1 - item.tile) * kTile, kv = item.head / heads.group();
    const int row = q0 + threadIdx.x / 16 * 4, x = threadIdx.x % 16;
    const int64_t first_row = heads.row(item.batch, item.head) + row;

    float lse[4], sum[4] = {}, delta[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) lse[i] = row + i < positions ? p.lse[first_row + i] : 0.0f;
    for (int k0 = 0; k0 < min(q0 + kTile, positions); k0 += kTile) {
        float s[4][4], dp[4][4];
        products(s, views.query(q0, item.head), views.key(k0, kv), a_tile, b_tile);
        products(dp, views.dout(q0, item.head), views.value(k0, kv), a_tile, b_tile);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const bool visible = k0 + x + 16 * j <= row + i;
                const float e = weight(s[i][j], heads.scale, lse[i], visible);
                sum[i] += e;
                delta[i] = fmaf(e, dp[i][j], delta[i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float inverse = 1.0f / row_sum(sum[i]);
        const Vector<float, 2> pair{inverse, row_sum(delta[i]) * inverse};
        if (x == 0 && row + i < positions) store(p.rows + 2 * (first_row + i), pair);
    }
}

// Scores s and dP of queries row.. (4, of a head whose rows begin at head_row) and keys key + 16 j:
// s becomes P, dp becomes dS without its factor 1 / sqrt(D).
template <typename T>
__device__ __forceinline__ void softmax_gradient(float (&s)[4][4], float (&dp)[4][4],
                                                 const GeneralArguments<T>& p, int64_t head_row,
                                                 int row, int key) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const bool inside = row + i < p.heads.positions;
        const int64_t at = head_row + (inside ? row + i : 0);
        const float lse = p.lse[at];
        const Vector<float, 2> pair = load<2>(p.rows + 2 * at);  // 1 / sum, delta
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const bool visible = inside && key + 16 * j <= row + i;
            s[i][j] = weight(s[i][j], p.heads.scale, lse, visible) * pair[0];
            dp[i][j] = s[i][j] * (dp[i][j] - pair[1]);
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    general_query_gradient_kernel(const GeneralArguments<T> p) {
    LMO_DYNAMIC_SHARED(float, shared);
    wait_for_previous();
    float *const a_tile = shared, *const b_tile = shared + kArea, *const weights = b_tile + kArea;
    const AttentionHeads& heads = p.heads;
    const GeneralItem item(heads, heads.heads);
    const Views<T> views{p, item.batch};
    const int positions = heads.positions, kv = item.head / heads.group();
    const int q0 = (div_up(positions, kTile) - 1) * kTile - item.position;
    const int row = q0 + threadIdx.x / 16 * 4, x = threadIdx.x % 16;

    float acc[4][4] = {};
    for (int k0 = 0; k0 < min(q0 + kTile, positions); k0 += kTile) {
        float s[4][4], dp[4][4];
        products(s, views.query(q0, item.head), views.key(k0, kv), a_tile, b_tile);
        products(dp, views.dout(q0, item.head), views.value(k0, kv), a_tile, b_tile);
        softmax_gradient(s, dp, p, heads.row(item.batch, item.head), row, k0 + x);
        keep(weights, dp);
        __syncthreads();
        load_chunk(b_tile, views.key(k0, kv), item.column);
        __syncthreads();
        add_weighted<false>(acc, weights, b_tile, min(kTile, positions - k0));
    }
    const float scale[4] = {heads.scale, heads.scale, heads.scale, heads.scale};
    store_chunk(views.gradient(q0, item.head), item.column, acc, scale);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    general_key_value_gradient_kernel(const GeneralArguments<T> p) {
    LMO_DYNAMIC_SHARED(float, shared);
    wait_for_previous();
    float *const a_tile = shared, *const b_tile = shared + kArea;
    float *const weights = b_tile + kArea, *const gradients = weights + kArea;
    const AttentionHeads& heads = p.heads;
    const GeneralItem item(heads, heads.kv_heads);
    const Views<T> views{p, item.batch};
    const int positions = heads.positions, kv = item.head, k0 = item.position;
    const int y = threadIdx.x / 16 * 4, x = threadIdx.x % 16;

    float dk[4][4] = {}, dv[4][4] = {};
    for (int h = kv * heads.group(); h < (kv + 1) * heads.group(); ++h) {
        for (int q0 = k0; q0 < positions; q0 += kTile) {
            float s[4][4], dp[4][4];
            products(s, views.query(q0, h), views.key(k0, kv), a_tile, b_tile);
            keep(weights, s);
            products(dp, views.dout(q0, h), views.value(k0, kv), a_tile, b_tile);
            recall(s, weights);
            softmax_gradient(s, dp, p, heads.row(item.batch, h), q0 + y, k0 + x);
            keep(weights, s);
            keep(gradients, dp);
            const int queries = min(kTile, positions - q0);
            __syncthreads();
            load_chunk(a_tile, views.dout(q0, h), item.column);
            load_chunk(b_tile, views.query(q0, h), item.column);
            __syncthreads();
            add_weighted<true>(dv, weights, a_tile, queries);
            add_weighted<true>(dk, gradients, b_tile, queries);
        }
    }
    const float scale[4] = {heads.scale, heads.scale, heads.scale, heads.scale};
    const float one[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    store_chunk(views.gradient(k0, heads.heads + kv), item.column, dk, scale);
    store_chunk(views.gradient(k0, heads.heads + heads.kv_heads + kv), item.column, dv, one);
}

}  // namespace

void general_attention_backward(const AttentionBackward& op, const AttentionHeads& heads,
                                Stream stream) {
    const int parts = div_up(heads.size, kTile);
    for_compute_type(op.qkv.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        GeneralArguments<T> p{heads,
                              four_at_a_time(heads, op.qkv.data, op.dout.data, op.dqkv.data)};
        p.qkv = op.qkv.as<T>();
        p.dout = op.dout.as<T>();
        p.lse = op.lse.as<float>();
        p.rows = op.workspace.as<float>();
        p.dqkv = op.dqkv.as<T>();
        launch_general(LMO_KERNEL(general_row_kernel<T>), 2, heads.heads, 1, p, stream);
        launch_general(LMO_KERNEL(general_query_gradient_kernel<T>), 3, heads.heads, parts, p,
                       stream);
        launch_general(LMO_KERNEL(general_key_value_gradient_kernel<T>), 4, heads.kv_heads, parts,
                       p, stream);
    });
}

}  // namespace lmo::cuda
