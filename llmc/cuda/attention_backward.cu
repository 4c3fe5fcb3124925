// Causal attention, backward, on tensor cores: bf16, head sizes up to 128, any T, grouped heads.
//
// With P = exp(S / sqrt(D) - lse) from the saved log-sum-exp and dP = dO V^T:
//   delta_t = sum_s P_ts dP_ts,  dS = P (dP - delta),
//   dQ = dS K / sqrt(D),  dK = dS^T Q / sqrt(D),  dV = P^T dO
// in two kernels without atomics, so that results have the same bits in every run
// (FlashAttention-2, Dao 2023, adds dQ by atomics; here P and dP are computed twice instead):
//  * query_gradient: a block owns queries of one head and walks over the keys. It leaves (lse in
//    base 2, delta) of every row in the workspace, [B, H, T rounded up] pairs of fp32; rows behind
//    T get an infinite lse, which makes their P zero.
//  * key_value_gradient: a block owns keys of one key/value head and walks over the queries that
//    see them, of all heads of the group in turn. It works on S^T = K Q^T and dP^T = V dO^T, so
//    that P^T and dS^T are A operands where they are.
// As in attention.cu: 16 rows a warp, scores in registers, the next tile under way by cp.async,
// hidden tiles skipped, the longest blocks first. P and dS are rounded to bf16 for the products.
//
// delta is known before the walk only as dO . O, in error by the rounding of O to bf16; where few
// keys have all the weight, that error is larger than dS. It is e = sum_s dS, computed on the way:
// dQ is corrected by e (P K), a product which shares the reads of dS K, and dK gets delta + e.
// The first query of a sequence sees one key: its softmax is 1 and its gradient zero, but delta and
// dP are that number summed in different orders. Its dS and dQ are set to zero, because an
// optimizer that looks at signs only would follow the difference.
//
// lse is one fp32 number, so P carries a relative error of about 2^-23 |lse|. Where that number is
// so large that it says nothing any more (|lse| > 2^20), it is rounded up, so that P fades to zero
// and no exp2 overflows.
//
// FLOPs: 10 D a visible pair (t, s) are counted, 5 D B H T (T + 1); 16 D are computed (dQ 8 D, dK
// and dV 8 D). Memory: each of Q, K, V, O, dO once as owner and once a block of the other kind,
// from L2; dqkv once.
//
// Blocks of 128 threads:  registers sm_80 / sm_90a   shared memory   blocks an SM (A100, H100)
//   dQ      D <=  64             168 / 168              32.5 KB          3 (12 warps)
//   dQ      D <= 128             255 / 255              64.5 KB          2 (8 warps)
//   dK, dV  D <=  64             168 / 168              32.5 KB          3 (12 warps)
//   dK, dV  D <= 128             251 / 249              64.5 KB          2 (8 warps)
#include "llmc/cuda/attention.cuh"
#include "llmc/cuda/attention_general.cuh"
#include "llmc/cuda/cuda_backend.h"

namespace lmo::cuda {

namespace {

struct BackwardArguments {
    AttentionHeads heads;
    const bf16 *qkv, *out, *dout;
    const float* lse;
    float* rows;  // workspace: (lse in base 2, delta) of each row
    bf16* dqkv;
};

constexpr int kThreads = 128;  // of both kernels: 4 warps of 16 rows

// Rows of a head in the workspace: whole tiles of both kernels.
constexpr int kRowBlock = 64;
__host__ __device__ inline int padded_rows(int positions) {
    return div_up(positions, kRowBlock) * kRowBlock;
}
// Its first float for a sequence and a head.
__device__ __forceinline__ int64_t workspace_row(const AttentionHeads& heads, int b, int h) {
    return int64_t{b * heads.heads + h} * (2 * padded_rows(heads.positions));
}

// lse in base 2, rounded up where it is beyond the precision of a weight.
__device__ __forceinline__ float to_base2(float lse) {
    const float x = lse * kLog2E;
    return x + 0x1p-18f * fmaxf(fabsf(x) - 0x1p20f, 0.0f);
}

// ---- dQ -----------------------------------------------------------------------------------------

template <int Size>
struct QueryTiles {
    static constexpr int kQueries = 64, kKeys = 32, kBlocks = Size == 64 ? 3 : 2;
    static constexpr bool kKeepQ = Size == 64;  // in registers
    static constexpr size_t kSharedBytes =      // Q, dO, two stages of K and V, rows
        sizeof(bf16) * Size * (2 * kQueries + 4 * kKeys) + 2 * sizeof(float) * kQueries;
};

// (lse in base 2, dO . O) of the block's rows; lse points at the first one's. Size / 8 neighbouring
// lanes take a row together.
template <int Size, int Queries>
__device__ __forceinline__ void prepare_rows(float* rows, const float* lse, int count,
                                             const bf16* out_tile, const bf16* dout_tile) {
    constexpr int kChunks = Size / 8, kRowsAtOnce = kThreads / kChunks;
    const int chunk = threadIdx.x & (kChunks - 1);
#pragma unroll
    for (int i = 0; i < Queries / kRowsAtOnce; ++i) {
        const int row = threadIdx.x / kChunks + i * kRowsAtOnce;
        const Vector<bf16, 8> o = load<8>(out_tile + tile_offset<Size>(row, chunk));
        const Vector<bf16, 8> g = load<8>(dout_tile + tile_offset<Size>(row, chunk));
        float delta = 0.0f;
#pragma unroll
        for (int e = 0; e < 8; ++e) delta = fmaf(to_float(o[e]), to_float(g[e]), delta);
#pragma unroll
        for (int step = kChunks / 2; step > 0; step /= 2) {
            delta += __shfl_xor_sync(0xffffffffu, delta, step);
        }
        if (chunk == 0) {
            const float base2 = row < count ? to_base2(lse[row]) : INFINITY;
            store_shared(rows + 2 * row, Vector<float, 2>{base2, delta});
        }
    }
}

// Scores of a warp's queries become P, dP becomes dS without its factor; `rows` is (lse, delta) of
// this lane's first query, and its sums of dS grow. Rows r + 8 follow 16 floats on.
template <int N>
__device__ __forceinline__ void to_weights(float (&s)[N][4], float scale2, const float* rows) {
    const float lse[2] = {rows[0], rows[16]};
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] = fast_exp2(fmaf(s[n][e], scale2, -lse[e / 2]));
    }
}
template <int N>
__device__ __forceinline__ void to_gradients(float (&ds)[N][4], const float (&p)[N][4],
                                             const float* rows, float (&sum)[2]) {
    const float delta[2] = {rows[1], rows[17]};
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            ds[n][e] = p[n][e] * (ds[n][e] - delta[e / 2]);
            sum[e / 2] += ds[n][e];
        }
    }
}

// With e the row's sum of dS: delta + e is its right value, and dQ without e (P K) its right dQ.
// (lse, delta) go to the workspace, in pairs a row; `row` is this lane's first one there.
template <int Size>
__device__ __forceinline__ void correct_delta(float (&dq)[Size / 8][4],
                                              const float (&pk)[Size / 8][4], float (&excess)[2],
                                              const float* rows, float* workspace) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float e = quad_sum(excess[half]);
        if ((threadIdx.x & 3) == 0) {
            store(workspace + 16 * half,
                  Vector<float, 2>{rows[16 * half], rows[16 * half + 1] + e});
        }
#pragma unroll
        for (int n = 0; n < Size / 8; ++n) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) dq[n][i] = fmaf(-e, pk[n][i], dq[n][i]);
        }
    }
}

template <int Size>
__global__ void __launch_bounds__(kThreads, QueryTiles<Size>::kBlocks)
    query_gradient_kernel(const BackwardArguments p) {
    constexpr int Queries = QueryTiles<Size>::kQueries, Keys = QueryTiles<Size>::kKeys;
    static_assert(Queries == 2 * Keys);  // a tile of O fits into a stage
    LMO_DYNAMIC_SHARED(bf16, shared);
    bf16 *const q_tile = shared, *const dout_tile = q_tile + Queries * Size;
    bf16 *const stages = dout_tile + Queries * Size, *const out_tile = stages + 2 * Keys * Size;
    float* const row_tile = reinterpret_cast<float*>(stages + 4 * Keys * Size);
    const AttentionHeads& heads = p.heads;
    const int T = heads.positions, tiles_of_queries = div_up(T, Queries);
    const AttentionItem item(tiles_of_queries, heads.heads);
    const int q0 = (tiles_of_queries - 1 - item.tile) * Queries;
    const int warp_row = threadIdx.x / 32 * 16, first_row = q0 + warp_row;
    const int row = first_row + (threadIdx.x >> 2 & 7), tiles = div_up(min(q0 + Queries, T), Keys);

    const int value_offset = heads.kv_heads * heads.size;
    const bf16* keys = p.qkv + heads.key(item.batch, 0, item.head / heads.group());
    const auto load_keys = [&](int j) {
        bf16* const stage = stages + (j & 1) * (2 * Keys * Size);
        load_tile<Keys, Size, kThreads>(stage, keys, heads.stride(), T - j * Keys, heads.size);
        load_tile<Keys, Size, kThreads>(stage + Keys * Size, keys + value_offset, heads.stride(),
                                        T - j * Keys, heads.size);
        keys += Keys * heads.stride();
    };
    const int64_t out = heads.output(item.batch, q0, item.head);
    wait_for_previous();
    load_tile<Queries, Size, kThreads>(q_tile, p.qkv + heads.query(item.batch, q0, item.head),
                                       heads.stride(), T - q0, heads.size);
    load_tile<Queries, Size, kThreads>(dout_tile, p.dout + out, heads.out_stride(), T - q0,
                                       heads.size);
    load_tile<Queries, Size, kThreads>(out_tile, p.out + out, heads.out_stride(), T - q0,
                                       heads.size);
    load_keys(0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    prepare_rows<Size, Queries>(row_tile, p.lse + heads.row(item.batch, item.head) + q0, T - q0,
                                out_tile, dout_tile);
    const float* const rows = row_tile + 2 * (row - q0);
    WarpRows<Size, QueryTiles<Size>::kKeepQ> q;
    WarpRows<Size, false> dout;
    q.read(q_tile, warp_row);
    dout.read(dout_tile, warp_row);

    float dq[Size / 8][4], pk[Size / 8][4], excess[2] = {0.0f, 0.0f};
    set_zero(dq);
    set_zero(pk);
    for (int j = 0; j < tiles; ++j) {
        cp_async_wait<0>();
        __syncthreads();  // tile j and the rows are there, and nobody reads the other stage any
                          // more
        if (j + 1 < tiles) load_keys(j + 1);
        cp_async_commit();
        if (first_row >= T || j * Keys > first_row + 15) continue;
        const bf16* const k_tile = stages + (j & 1) * (2 * Keys * Size);
        float s[Keys / 8][4], ds[Keys / 8][4];
        set_zero(s);
        add_product_transposed<Size, Keys>(s, q, k_tile);
        if (j * Keys + Keys - 1 > first_row) mask_future(s, j * Keys, row);
        to_weights(s, heads.scale * kLog2E, rows);
        set_zero(ds);
        add_product_transposed<Size, Keys>(ds, dout, k_tile + Keys * Size);
        to_gradients(ds, s, rows, excess);
        add_products<Size, Keys>(dq, ds, pk, s, k_tile);
    }
    correct_delta<Size>(dq, pk, excess, rows,
                        p.rows + workspace_row(heads, item.batch, item.head) + 2 * row);
    // Query 0 gets no gradient, exactly; it is still NaN where it was.
    store_rows<Size>(p.dqkv + heads.query(item.batch, first_row, item.head), heads.stride(),
                     T - first_row, heads.size, dq, row == 0 ? 0.0f : heads.scale, heads.scale,
                     q_tile + warp_row * Size);
}

// ---- dK and dV ----------------------------------------------------------------------------------

template <int Size>
struct KeyValueTiles {
    static constexpr int kKeys = 64, kQueries = 32, kBlocks = Size == 64 ? 3 : 2;
    static constexpr bool kKeepK = Size == 64;  // in registers
    static constexpr size_t kSharedBytes =      // K, V, two stages of Q, dO and rows
        sizeof(bf16) * Size * (2 * kKeys + 4 * kQueries) + 2 * 2 * sizeof(float) * kQueries;
};

// As above with queries in columns: `rows` is (lse, delta) of this lane's first query.
template <int N>
__device__ __forceinline__ void to_weights_transposed(float (&s)[N][4], float scale2,
                                                      const float* rows) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const Vector<float, 4> pairs = load<4>(rows + 16 * n);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            s[n][e] = fast_exp2(fmaf(s[n][e], scale2, -pairs[e % 2 * 2]));
        }
    }
}
template <int N>
__device__ __forceinline__ void to_gradients_transposed(float (&ds)[N][4], const float (&p)[N][4],
                                                        const float* rows) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const Vector<float, 4> pairs = load<4>(rows + 16 * n);
#pragma unroll
        for (int e = 0; e < 4; ++e) ds[n][e] = p[n][e] * (ds[n][e] - pairs[e % 2 * 2 + 1]);
    }
}

// Starts the copy of a tile of Q, dO and their rows into a stage.
template <int Size, int Queries>
__device__ __forceinline__ void load_queries(bf16* stage, float* rows, const BackwardArguments& p,
                                             int batch, int head, int q0) {
    const AttentionHeads& heads = p.heads;
    load_tile<Queries, Size, kThreads>(stage, p.qkv + heads.query(batch, q0, head), heads.stride(),
                                       heads.positions - q0, heads.size);
    load_tile<Queries, Size, kThreads>(stage + Queries * Size,
                                       p.dout + heads.output(batch, q0, head), heads.out_stride(),
                                       heads.positions - q0, heads.size);
    const int i = 4 * threadIdx.x;  // two rows in 16 bytes
    if (i < 2 * Queries) {
        cp_async_16(rows + i, p.rows + workspace_row(heads, batch, head) + 2 * q0 + i);
    }
}

template <int Size>
__global__ void __launch_bounds__(kThreads, KeyValueTiles<Size>::kBlocks)
    key_value_gradient_kernel(const BackwardArguments p) {
    constexpr int Keys = KeyValueTiles<Size>::kKeys, Queries = KeyValueTiles<Size>::kQueries;
    constexpr int kStage = 2 * Queries * Size;
    LMO_DYNAMIC_SHARED(bf16, shared);
    bf16 *const k_tile = shared, *const v_tile = k_tile + Keys * Size;
    bf16* const stages = v_tile + Keys * Size;
    float* const row_stages = reinterpret_cast<float*>(stages + 2 * kStage);
    const AttentionHeads& heads = p.heads;
    const int T = heads.positions;
    const AttentionItem item(div_up(T, Keys), heads.kv_heads);
    const int k0 = item.tile * Keys, warp_row = threadIdx.x / 32 * 16, first_key = k0 + warp_row;
    const int lane = threadIdx.x & 31, key = first_key + (lane >> 2);
    const int end_head = (item.head + 1) * heads.group();

    const int64_t keys = heads.key(item.batch, k0, item.head);
    const int64_t values = heads.value(item.batch, k0, item.head);
    wait_for_previous();
    load_tile<Keys, Size, kThreads>(k_tile, p.qkv + keys, heads.stride(), T - k0, heads.size);
    load_tile<Keys, Size, kThreads>(v_tile, p.qkv + values, heads.stride(), T - k0, heads.size);
    int head = item.head * heads.group(), q0 = k0, stage = 0;
    load_queries<Size, Queries>(stages, row_stages, p, item.batch, head, q0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    WarpRows<Size, KeyValueTiles<Size>::kKeepK> k;
    WarpRows<Size, false> v;
    k.read(k_tile, warp_row);
    v.read(v_tile, warp_row);

    float dk[Size / 8][4], dv[Size / 8][4];
    set_zero(dk);
    set_zero(dv);
    while (head < end_head) {
        cp_async_wait<0>();
        __syncthreads();  // this stage is there, and nobody reads the other one any more
        const int now = q0;
        const bf16 *const q_tile = stages + stage * kStage, *const dout_tile = q_tile + kStage / 2;
        const float* const rows = row_stages + stage * (2 * Queries) + 4 * (lane & 3);
        q0 += Queries;
        if (q0 >= T) {
            q0 = k0;
            ++head;
        }
        stage ^= 1;
        if (head < end_head) {
            load_queries<Size, Queries>(stages + stage * kStage, row_stages + stage * (2 * Queries),
                                        p, item.batch, head, q0);
        }
        cp_async_commit();
        if (first_key >= T || now + Queries - 1 < first_key) continue;
        float s[Queries / 8][4], ds[Queries / 8][4];
        set_zero(s);
        add_product_transposed<Size, Queries>(s, k, q_tile);
        if (now < first_key + 15) mask_past(s, now, key);
        to_weights_transposed(s, heads.scale * kLog2E, rows);
        add_product<Size, Queries>(dv, s, dout_tile);
        set_zero(ds);
        add_product_transposed<Size, Queries>(ds, v, dout_tile);
        to_gradients_transposed(ds, s, rows);
        if (key == 0 && now == 0 && (lane & 3) == 0) ds[0][0] *= 0.0f;  // query 0, as in dQ
        add_product<Size, Queries>(dk, ds, q_tile);
    }
    store_rows<Size>(p.dqkv + keys + int64_t{warp_row} * heads.stride(), heads.stride(),
                     T - first_key, heads.size, dk, heads.scale, heads.scale,
                     k_tile + warp_row * Size);
    store_rows<Size>(p.dqkv + values + int64_t{warp_row} * heads.stride(), heads.stride(),
                     T - first_key, heads.size, dv, 1.0f, 1.0f, v_tile + warp_row * Size);
}

template <int Size>
void launch_backward(const BackwardArguments& p, Stream stream) {
    const AttentionHeads& heads = p.heads;
    using Query = QueryTiles<Size>;
    allow_shared("query_gradient_kernel", query_gradient_kernel<Size>, Query::kSharedBytes);
    launch(LMO_KERNEL(query_gradient_kernel<Size>),
           attention_grid(heads.batch, heads.heads, div_up(heads.positions, Query::kQueries)),
           kThreads, Query::kSharedBytes, stream, p);
    using KeyValue = KeyValueTiles<Size>;
    allow_shared("key_value_gradient_kernel", key_value_gradient_kernel<Size>,
                 KeyValue::kSharedBytes);
    launch(LMO_KERNEL(key_value_gradient_kernel<Size>),
           attention_grid(heads.batch, heads.kv_heads, div_up(heads.positions, KeyValue::kKeys)),
           kThreads, KeyValue::kSharedBytes, stream, p);
}

}  // namespace

size_t CudaBackend::workspace_bytes(const AttentionBackward& op) const {
    if (op.library) return cudnn().workspace_bytes(op);
    const AttentionHeads heads(op.qkv, op.heads, op.kv_heads);
    // Which kernels run depends on addresses too; both kinds keep two floats a row.
    return heads.batch * heads.heads * padded_rows(heads.positions) * 2 * sizeof(float);
}

void CudaBackend::attention_backward(const AttentionBackward& op) {
    const AttentionHeads heads(op.qkv, op.heads, op.kv_heads);
    const int64_t rows = heads.batch * heads.positions * heads.heads;
    assert(op.out.dtype == op.qkv.dtype && op.out.count() == rows * heads.size);
    assert(op.dout.dtype == op.qkv.dtype && op.dout.count() == rows * heads.size);
    assert(op.dqkv.dtype == op.qkv.dtype && op.dqkv.count() == op.qkv.count());
    assert(op.lse.dtype == DType::f32 && op.lse.count() == rows);
    assert(op.workspace.bytes() >= workspace_bytes(op));
    if (rows == 0) return;
    if (op.library) return cudnn().backward(op);
    if (!attention_on_tensor_cores(op.qkv, heads, op.out.data, op.dout.data, op.dqkv.data,
                                   op.workspace.data)) {
        return general_attention_backward(op, heads, stream_);
    }
    const BackwardArguments p{heads,
                              op.qkv.as<bf16>(),
                              op.out.as<bf16>(),
                              op.dout.as<bf16>(),
                              op.lse.as<float>(),
                              op.workspace.as<float>(),
                              op.dqkv.as<bf16>()};
    heads.size <= 64 ? launch_backward<64>(p, stream_) : launch_backward<128>(p, stream_);
}

}  // namespace lmo::cuda
