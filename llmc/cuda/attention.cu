// Causal attention, forward, on tensor cores: bf16, head sizes up to 128, any T, grouped heads.
//
//   S = Q K^T,  P = softmax(S / sqrt(D)) over the keys s <= t,  out = P V,  lse = log-sum-exp
//
// A block owns 128 queries of one head, 16 a warp, and walks over tiles of 64 keys with the softmax
// of Milakov & Gimelshein 2018 in the form of FlashAttention-2 (Dao 2023): a running maximum and
// sum per row, the output rescaled when the maximum grows. S and P stay in registers (see
// tile.cuh); the next tile of K and V arrives by cp.async while this one is multiplied. Tiles that
// the mask hides are skipped by each warp, and only tiles on the diagonal are masked. Blocks with
// the most keys come first. P is rounded to bf16 for P V; its sum is of the unrounded values.
//
// FLOPs: 4 D a visible pair (t, s): 2 D B H T (T + 1) in all; the tiles of a 512-position sequence
// compute 1.12 times that. Memory: Q and out once, K and V once a block of queries, from L2.
// Weights are exp2((s - max) log2(e) / sqrt(D)): the difference first, which is exact at the
// maximum for scores of any size.
//
//            registers sm_80 / sm_90a   shared memory   threads   blocks an SM (A100, H100)
//   D <=  64        128 / 128                48 KB        256        2 (16 warps)
//   D <= 128        211 / 219                96 KB        256        1 (8 warps)
#include "llmc/cuda/attention.cuh"
#include "llmc/cuda/attention_general.cuh"
#include "llmc/cuda/cuda_backend.h"

namespace lmo::cuda {

namespace {

struct ForwardArguments {
    AttentionHeads heads;
    const bf16* qkv;
    bf16* out;
    float *lse, *row_max;  // row_max: or none
};

constexpr int kQueries = 128, kKeys = 64, kThreads = 2 * kQueries;

// Q, and K and V twice.
template <int Size>
constexpr size_t kSharedBytes = sizeof(bf16) * Size*(kQueries + 4 * kKeys);
template <int Size>
constexpr int kBlocks = Size == 64 ? 2 : 1;  // an SM

// Scores become weights relative to the running maximum of their row; what was summed so far is
// rescaled to it. Every query sees key 0, so the maximum is finite from the first tile on. `sum` is
// this lane's part of the row's sum.
template <int N, int M>
__device__ __forceinline__ void softmax_step(float (&s)[N][4], float (&top)[2], float (&sum)[2],
                                             float (&acc)[M][4], float scale2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float high = top[half];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            high = fmaxf(high, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        }
        high = quad_max(high);
        const float rescale = fast_exp2((top[half] - high) * scale2);
        top[half] = high;
        float more = 0.0f;
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) {
                s[n][e] = fast_exp2((s[n][e] - high) * scale2);
                more += s[n][e];
            }
        }
        sum[half] = fmaf(sum[half], rescale, more);
#pragma unroll
        for (int n = 0; n < M; ++n) {
            acc[n][2 * half] *= rescale;
            acc[n][2 * half + 1] *= rescale;
        }
    }
}

// KeepMax: the largest score of each row goes to row_max.
template <int Size, bool KeepMax>
__global__ void __launch_bounds__(kThreads, kBlocks<Size>)
    attention_forward_kernel(const ForwardArguments p) {
    LMO_DYNAMIC_SHARED(bf16, shared);
    bf16 *const q_tile = shared, *const stages = shared + kQueries * Size;
    const AttentionHeads& heads = p.heads;
    const int T = heads.positions, tiles_of_queries = div_up(T, kQueries);
    const AttentionItem item(tiles_of_queries, heads.heads);
    const int kv_head = item.head / heads.group();
    const int q0 = (tiles_of_queries - 1 - item.tile) * kQueries;
    const int warp_row = threadIdx.x / 32 * 16, first_row = q0 + warp_row;
    const int lane = threadIdx.x & 31, row = first_row + (lane >> 2);
    const int tiles = div_up(min(q0 + kQueries, T), kKeys);
    const float scale2 = heads.scale * kLog2E;

    // Values lie value_offset behind the keys; `keys` walks from tile to tile.
    const int value_offset = heads.kv_heads * heads.size;
    const bf16* keys = p.qkv + heads.key(item.batch, 0, kv_head);
    const auto load_keys = [&](int j) {
        bf16* const stage = stages + (j & 1) * (2 * kKeys * Size);
        load_tile<kKeys, Size, kThreads>(stage, keys, heads.stride(), T - j * kKeys, heads.size);
        load_tile<kKeys, Size, kThreads>(stage + kKeys * Size, keys + value_offset, heads.stride(),
                                         T - j * kKeys, heads.size);
        keys += kKeys * heads.stride();
    };
    wait_for_previous();
    load_tile<kQueries, Size, kThreads>(q_tile, p.qkv + heads.query(item.batch, q0, item.head),
                                        heads.stride(), T - q0, heads.size);
    load_keys(0);
    cp_async_commit();

    WarpRows<Size, true> q;
    float acc[Size / 8][4], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    set_zero(acc);
    for (int j = 0; j < tiles; ++j) {
        cp_async_wait<0>();
        __syncthreads();  // tile j is there, and nobody reads tile j - 1 any more
        if (j + 1 < tiles) load_keys(j + 1);
        cp_async_commit();
        if (j == 0) q.read(q_tile, warp_row);
        if (first_row >= T || j * kKeys > first_row + 15) continue;
        const bf16* const k_tile = stages + (j & 1) * (2 * kKeys * Size);
        float s[kKeys / 8][4];
        set_zero(s);
        add_product_transposed<Size, kKeys>(s, q, k_tile);
        if (j * kKeys + kKeys - 1 > first_row) mask_future(s, j * kKeys, row);
        softmax_step(s, top, sum, acc, scale2);
        add_product<Size, kKeys>(acc, s, k_tile + kKeys * Size);
    }

    sum[0] = quad_sum(sum[0]);
    sum[1] = quad_sum(sum[1]);
    store_rows<Size>(p.out + heads.output(item.batch, first_row, item.head), heads.out_stride(),
                     T - first_row, heads.size, acc, 1.0f / sum[0], 1.0f / sum[1],
                     q_tile + warp_row * Size);
    if ((lane & 3) == 0) {
        float* const lse = p.lse + heads.row(item.batch, item.head);
        if (row < T) lse[row] = fmaf(top[0], heads.scale, logf(sum[0]));
        if (row + 8 < T) lse[row + 8] = fmaf(top[1], heads.scale, logf(sum[1]));
        if constexpr (KeepMax) {
            float* const row_max = p.row_max + heads.row(item.batch, item.head);
            if (row < T) row_max[row] = top[0] * heads.scale;
            if (row + 8 < T) row_max[row + 8] = top[1] * heads.scale;
        }
    }
}

template <int Size, bool KeepMax>
void launch_forward(const ForwardArguments& p, Stream stream) {
    const AttentionHeads& heads = p.heads;
    allow_shared("attention_forward_kernel", attention_forward_kernel<Size, KeepMax>,
                 kSharedBytes<Size>);
    launch(LMO_KERNEL(attention_forward_kernel<Size, KeepMax>),
           attention_grid(heads.batch, heads.heads, div_up(heads.positions, kQueries)), kThreads,
           kSharedBytes<Size>, stream, p);
}

}  // namespace

size_t CudaBackend::workspace_bytes(const AttentionForward& op) const {
    return op.library ? cudnn().workspace_bytes(op) : 0;
}

void CudaBackend::attention_forward(const AttentionForward& op) {
    const AttentionHeads heads(op.qkv, op.heads, op.kv_heads);
    const int64_t rows = heads.batch * heads.positions * heads.heads;
    assert(op.out.dtype == op.qkv.dtype && op.out.count() == rows * heads.size);
    assert(op.lse.dtype == DType::f32 && op.lse.count() == rows);
    assert(op.row_max.empty() || (op.row_max.dtype == DType::f32 && op.row_max.count() == rows));
    if (rows == 0) return;
    if (op.library) return cudnn().forward(op);
    if (!attention_on_tensor_cores(op.qkv, heads, op.out.data)) {
        return general_attention_forward(op, heads, stream_);
    }
    const ForwardArguments p{heads, op.qkv.as<bf16>(), op.out.as<bf16>(), op.lse.as<float>(),
                             op.row_max.as<float>()};
    const auto run = [&](auto keep_max) {
        constexpr bool kKeepMax = decltype(keep_max)::value;
        heads.size <= 64 ? launch_forward<64, kKeepMax>(p, stream_)
                         : launch_forward<128, kKeepMax>(p, stream_);
    };
    op.row_max.empty() ? run(std::false_type()) : run(std::true_type());
}

}  // namespace lmo::cuda
