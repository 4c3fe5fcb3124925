// Causal attention without tensor cores: fp32 (true fp32), and bf16 heads that attention.cu does
// not take. Any head size, any T, grouped heads; arithmetic and sums in fp32.
//
// The algorithm is that of attention.cu and attention_backward.cu, on tiles of 64 queries x 64 keys
// in shared memory. 256 threads form a 16 x 16 square; thread (y, x) owns the scores of queries
// 4 y.. (4) and keys x, x + 16, x + 32, x + 48, and of the results 4 rows x 4 columns of each chunk
// of 64 columns. Head columns are walked in chunks of 64; a block accumulates two chunks of
// results, 128 columns, and wider heads take further blocks, which compute the scores again.
//
// A score is one chain of fmaf in the order of its columns, in every kernel. It is therefore the
// same number in forward and backward, and P of a single visible key is exp(0) = 1. As on the CPU,
// the backward pass divides P by its sum, because the rounding of a large lse would be a factor
// common to the row, and takes delta = sum_s P_ts dP_ts: a query with one key gets no gradient,
// exactly. This costs the dQ kernel a first walk over the keys; it leaves (1 / sum, delta) of every
// row in the workspace, [B, H, T] pairs, for the dK, dV kernel.
//
// FLOPs of a visible pair (t, s), D <= 128: forward 4 D; backward 18 D, of which 10 D are counted
// (dQ: S and dP twice, dS K; dK, dV: S, dP, P^T dO, dS^T Q). For wider heads the scores are
// computed once for each 128 columns. Registers and occupancy: at most 128 registers, 52 KB (70 KB
// for dK, dV) of shared memory, 2 blocks of 256 threads an SM.
#include "llmc/cuda/attention_general.cuh"

namespace lmo::cuda {

namespace {

constexpr int kTile = 64;           // queries and keys of a tile, columns of a chunk
constexpr int kThreads = 256;       // 16 x 16
constexpr int kStride = kTile + 4;  // of a tile's rows: rows 0..7 start in different banks
constexpr int kArea = kTile * kStride;

template <typename T>
struct GeneralArguments {
    AttentionHeads heads;
    bool aligned;  // rows can be accessed four elements at a time
    const T *qkv, *dout;
    T *out, *dqkv;
    float *lse, *rows;
};

// A matrix in memory: `rows` rows of `columns` elements, from one head.
template <typename T>
struct Rows {
    T* data;
    int stride, rows, columns;
    bool aligned;
};

// Columns first.. (64) of a matrix become a tile in fp32; what is outside becomes zero.
template <typename T>
__device__ __forceinline__ void load_chunk(float* tile, const Rows<const T>& from, int first) {
    const int column = threadIdx.x % kTile;
    const int rows = first + column < from.columns ? from.rows : 0;
    int row = threadIdx.x / kTile;
    const T* at = from.data + (row * from.stride + first + column);
    float* to = tile + row * kStride + column;
#pragma unroll 4
    for (; row < kTile; row += kThreads / kTile) {
        *to = row < rows ? to_float(*at) : 0.0f;
        at += kThreads / kTile * from.stride;
        to += kThreads / kTile * kStride;
    }
}

// Writes this thread's 4 x 4 results, times scale[row], as columns first.. of a matrix.
template <typename T>
__device__ __forceinline__ void store_chunk(const Rows<T>& to, int first, const float (&acc)[4][4],
                                            const float (&scale)[4]) {
    const int column = first + threadIdx.x % 16 * 4, row0 = threadIdx.x / 16 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (row0 + i >= to.rows || column >= to.columns) continue;
        T* const at = to.data + ((row0 + i) * to.stride + column);
        Vector<T, 4> values;
#pragma unroll
        for (int c = 0; c < 4; ++c) values[c] = from_float<T>(acc[i][c] * scale[i]);
        if (to.aligned) {
            store(at, values);
        } else {
            for (int c = 0; c < 4; ++c) {
                if (column + c < to.columns) at[c] = values[c];
            }
        }
    }
}

// s[i][j] = (row 4 y + i of a) . (row x + 16 j of b), over all columns, through tiles.
template <typename T>
__device__ __forceinline__ void products(float (&s)[4][4], const Rows<const T>& a,
                                         const Rows<const T>& b, float* a_tile, float* b_tile) {
    const float* const a_rows = a_tile + threadIdx.x / 16 * 4 * kStride;
    const float* const b_rows = b_tile + threadIdx.x % 16 * kStride;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) s[i][j] = 0.0f;
    }
    for (int first = 0; first < a.columns; first += kTile) {
        __syncthreads();  // nobody reads the tiles any more
        load_chunk(a_tile, a, first);
        load_chunk(b_tile, b, first);
        __syncthreads();
#pragma unroll 1
        for (int d = 0; d < min(kTile, a.columns - first); d += 4) {
            Vector<float, 4> left[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) left[i] = load<4>(a_rows + i * kStride + d);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const Vector<float, 4> right = load<4>(b_rows + 16 * j * kStride + d);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) s[i][j] = fmaf(left[i][k], right[k], s[i][j]);
                }
            }
        }
    }
}

// acc += weights (rows x 64) tile: the thread's rows 4 y.. and columns 4 x.., over 64 positions, or
// with Transposed of weights^T. `count` positions matter, the rest is zero.
template <bool Transposed>
__device__ __forceinline__ void add_weighted(float (&acc)[4][4], const float* weights,
                                             const float* tile, int count) {
    const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
#pragma unroll 1
    for (int j = 0; j < count; j += 4) {
        Vector<float, 4> w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            w[i] = load<4>(Transposed ? weights + (j + i) * kStride + row
                                      : weights + (row + i) * kStride + j);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const Vector<float, 4> values = load<4>(tile + (j + k) * kStride + column);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float weight = Transposed ? w[k][i] : w[i][k];
#pragma unroll
                for (int c = 0; c < 4; ++c) acc[i][c] = fmaf(weight, values[c], acc[i][c]);
            }
        }
    }
}

// The thread's 4 x 4 scores as part of a tile of weights.
__device__ __forceinline__ void keep(float* weights, const float (&s)[4][4]) {
    float* const at = weights + threadIdx.x / 16 * 4 * kStride + threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) at[i * kStride + 16 * j] = s[i][j];
    }
}

__device__ __forceinline__ void recall(float (&s)[4][4], const float* weights) {
    const float* const at = weights + threadIdx.x / 16 * 4 * kStride + threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) s[i][j] = at[i * kStride + 16 * j];
    }
}

// Over the 16 threads that share rows.
__device__ __forceinline__ float row_max(float value) {
#pragma unroll
    for (int step = 8; step > 0; step /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    }
    return value;
}
__device__ __forceinline__ float row_sum(float value) {
#pragma unroll
    for (int step = 8; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// What a block works on: a tile of 64 positions of a head, and the result columns from `column` on.
struct GeneralItem {
    int column, position, head, batch;

    __device__ GeneralItem(const AttentionHeads& heads, int heads_of_results)
        : GeneralItem(div_up(heads.size, kTile),
                      AttentionItem(div_up(heads.size, kTile) * div_up(heads.positions, kTile),
                                    heads_of_results)) {}
    __device__ GeneralItem(int parts, const AttentionItem& item)
        : column(item.tile % parts * kTile),
          position(item.tile / parts * kTile),
          head(item.head),
          batch(item.batch) {}
};

template <typename T>
struct Views {  // of matrices that start at a position of a head
    const GeneralArguments<T>& p;
    int batch;

    __device__ Rows<const T> in_qkv(int t, int slot) const {
        return {p.qkv + p.heads.query(batch, t, slot), p.heads.stride(), p.heads.positions - t,
                p.heads.size, p.aligned};
    }
    __device__ Rows<const T> query(int t, int h) const { return in_qkv(t, h); }
    __device__ Rows<const T> key(int t, int kv) const { return in_qkv(t, p.heads.heads + kv); }
    __device__ Rows<const T> value(int t, int kv) const {
        return in_qkv(t, p.heads.heads + p.heads.kv_heads + kv);
    }
    __device__ Rows<const T> dout(int t, int h) const {
        return {p.dout + p.heads.output(batch, t, h), p.heads.out_stride(), p.heads.positions - t,
                p.heads.size, p.aligned};
    }
    __device__ Rows<T> gradient(int t, int slot) const {
        return {p.dqkv + p.heads.query(batch, t, slot), p.heads.stride(), p.heads.positions - t,
                p.heads.size, p.aligned};
    }
};

// ---- forward ------------------------------------------------------------------------------------

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) general_forward_kernel(const GeneralArguments<T> p) {
    LMO_DYNAMIC_SHARED(float, shared);
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
                s[i][j] = k0 + x + 16 * j <= row + i ? s[i][j] * heads.scale : -INFINITY;
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
            p.lse[heads.row(item.batch, item.head) + row + i] = top[i] + logf(sum[i]);
        }
    }
    const Rows<T> out{p.out + heads.output(item.batch, q0, item.head), heads.out_stride(),
                      positions - q0, heads.size, p.aligned};
    store_chunk(out, item.column, acc, inverse);
}

// ---- backward -----------------------------------------------------------------------------------

// exp(score - lse), zero where the key is not visible.
__device__ __forceinline__ float weight(float s, float scale, float lse, bool visible) {
    return visible ? expf(s * scale - lse) : 0.0f;
}

// (1 / sum, delta) of each row, for both kernels behind this one.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) general_row_kernel(const GeneralArguments<T> p) {
    LMO_DYNAMIC_SHARED(float, shared);
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
        keep(weights, s);
        products(dp, views.dout(q0, item.head), views.value(k0, kv), a_tile, b_tile);
        recall(s, weights);
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

// Blocks of the kernels that produce columns of heads; `areas`: tiles in shared memory.
template <typename T>
void launch_general(const char* name, void (*kernel)(const GeneralArguments<T>), int areas,
                    int heads_of_results, int parts, const GeneralArguments<T>& p,
                    cudaStream_t stream) {
    const size_t bytes = areas * kArea * sizeof(float);
    const int64_t tiles = div_up(p.heads.positions, kTile);
    allow_shared(name, kernel, bytes);
    launch(name, kernel, attention_grid(p.heads.batch, heads_of_results, tiles * parts), kThreads,
           bytes, stream, p);
}

template <typename... Pointers>
bool four_at_a_time(const AttentionHeads& heads, Pointers... pointers) {
    return heads.size % 4 == 0 && rows_aligned<float>(0, pointers...);
}

}  // namespace

void general_attention_forward(const AttentionForward& op, const AttentionHeads& heads,
                               cudaStream_t stream) {
    const int parts = div_up(heads.size, kTile);
    for_compute_type(op.qkv.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        GeneralArguments<T> p{heads, four_at_a_time(heads, op.qkv.data, op.out.data)};
        p.qkv = op.qkv.as<T>();
        p.out = op.out.as<T>();
        p.lse = op.lse.as<float>();
        launch_general(LMO_KERNEL(general_forward_kernel<T>), 3, heads.heads, parts, p, stream);
    });
}

void general_attention_backward(const AttentionBackward& op, const AttentionHeads& heads,
                                cudaStream_t stream) {
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
