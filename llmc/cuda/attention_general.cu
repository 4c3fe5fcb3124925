// Causal attention, forward, without tensor cores: see attention_general.cuh.
//
// The softmax runs along: a maximum and a sum per row, results rescaled when the maximum grows.
// FLOPs of a visible pair (t, s): 2 D + 128 for each 64 columns of D. 52 KB of shared memory, at
// most 128 registers: 2 blocks of 256 threads an SM.
#include "llmc/cuda/attention_general.cuh"

namespace lmo::cuda {

namespace {

using namespace general;

// KeepMax: the largest score of each row goes to row_max.
template <typename T, bool KeepMax>
__global__ void __launch_bounds__(kThreads, 2) general_forward_kernel(const GeneralArguments<T> p) {
    LMO_DYNAMIC_SHARED(float, shared);
    wait_for_previous();
    float *const a_tile = shared, *const b_tile = shared + kArea, *const weights = b_tile + kArea;
    const AttentionHeads& heads = p.heads;
    const GeneralItem item(heads, heads.heads);
    const Views<T> views{p, item.batch};
    const int positions = heads.positions, kv = item.head / heads.group();
    const int q0 = (div_up(positions, kTile) - 1) * kTile - item.position;  // the longest first
    const int row = q0 + threadIdx.x / 16 * 4, x = threadIdx.x % 16;

    float acc[4][4] = {}, top[4], sum[4] = {};
    for (float& value : top) value = -INFINITY;
    for (int k0 = 0; k0 < min(q0 + kTile, positions); k0 += kTile) {
        float s[4][4];
        products(s, views.query(q0, item.head), views.key(k0, kv), a_tile, b_tile);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float high = top[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const bool visible = k0 + x + 16 * j <= row + i;
                s[i][j] = visible ? scaled(s[i][j], heads.scale) : -INFINITY;
                high = fmaxf(high, s[i][j]);
            }
            high = row_max(high);
            const float rescale = expf(top[i] - high);
            top[i] = high;
            sum[i] *= rescale;
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[i] += s[i][j] = expf(s[i][j] - high);
#pragma unroll
            for (int c = 0; c < 4; ++c) acc[i][c] *= rescale;
        }
        keep(weights, s);
        __syncthreads();
        load_chunk(b_tile, views.value(k0, kv), item.column);
        __syncthreads();
        add_weighted<false>(acc, weights, b_tile, min(kTile, positions - k0));
    }

    float inverse[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sum[i] = row_sum(sum[i]);
        inverse[i] = 1.0f / sum[i];
        if (x == 0 && item.column == 0 && row + i < positions) {
            const int64_t at = heads.row(item.batch, item.head) + row + i;
            p.lse[at] = top[i] + logf(sum[i]);
            if constexpr (KeepMax) p.row_max[at] = top[i];
        }
    }
    const Rows<T> out{p.out + heads.output(item.batch, q0, item.head), heads.out_stride(),
                      positions - q0, heads.size, p.aligned};
    store_chunk(out, item.column, acc, inverse);
}

}  // namespace

void general_attention_forward(const AttentionForward& op, const AttentionHeads& heads,
                               Stream stream) {
    const int parts = div_up(heads.size, kTile);
    for_compute_type(op.qkv.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        GeneralArguments<T> p{heads, four_at_a_time(heads, op.qkv.data, op.out.data)};
        p.qkv = op.qkv.as<T>();
        p.out = op.out.as<T>();
        p.lse = op.lse.as<float>();
        p.row_max = op.row_max.as<float>();
        if (op.row_max.empty()) {
            launch_general(LMO_KERNEL(general_forward_kernel<T, false>), 3, heads.heads, parts, p,
                           stream);
        } else {
            launch_general(LMO_KERNEL(general_forward_kernel<T, true>), 3, heads.heads, parts, p,
                           stream);
        }
    });
}

}  // namespace lmo::cuda
