// Attention for what the tensor-core kernels do not take: fp32 (true fp32), and bf16 heads of other
// sizes. Any head size, any T, grouped heads; arithmetic and sums in fp32.
//
// The algorithms are those of attention.cu and attention_backward.cu, on tiles of 64 queries x 64
// keys. 256 threads form a 16 x 16 square; thread (y, x) owns the scores of queries 4 y.. (4) and
// keys x, x + 16, x + 32, x + 48, and of the results 4 rows x 4 columns. Head columns are walked in
// chunks of 64, through tiles of fp32 in shared memory. A block computes 64 columns of results;
// wider heads take further blocks, which compute the scores again.
//
// A score is one chain of fmaf in the order of its columns, in every kernel, so it is the same
// number in forward and backward, and the weight of a single visible key is exp(0) = 1.
#pragma once

#include "llmc/cuda/attention.cuh"
#include "llmc/device/backend.h"

namespace lmo::cuda {

void general_attention_forward(const AttentionForward& op, const AttentionHeads& heads,
                               Stream stream);
// The workspace holds two floats a row of lse.
void general_attention_backward(const AttentionBackward& op, const AttentionHeads& heads,
                                Stream stream);

namespace general {

constexpr int kTile = 64;           // queries and keys of a tile, columns of a chunk
constexpr int kThreads = 256;       // 16 x 16
constexpr int kStride = kTile + 4;  // of a tile's rows: rows 0..7 start in different banks
constexpr int kRowsAtOnce = kThreads / kTile;  // that a chunk is read
constexpr int kArea = kTile * kStride;

template <typename T>
struct GeneralArguments {
    AttentionHeads heads;
    bool aligned;  // rows can be accessed four elements at a time
    const T *qkv = nullptr, *dout = nullptr;
    T *out = nullptr, *dqkv = nullptr;
    float *lse = nullptr, *rows = nullptr, *row_max = nullptr;
};

// A matrix in memory: `rows` rows of `columns` elements, from one head.
template <typename T>
struct Rows {
    T* data;
    int stride, rows, columns;
    bool aligned;
};

// Columns first.. (64) of a matrix become a tile in fp32; what is outside becomes zero. Any stride
// and alignment will do: a warp reads 32 neighbours, one element a load, once for every 32 and more
// products that a thread makes of them.
template <typename T>
__device__ __forceinline__ void load_chunk(float* tile, const Rows<const T>& from, int first) {
    const int column = threadIdx.x % kTile, row0 = threadIdx.x / kTile;
    const int rows = first + column < from.columns ? from.rows : 0;
    // Loads without branches overlap: what is outside is read elsewhere and not used.
    const T* const at = from.data + min(first + column, from.columns - 1);
#pragma unroll 8
    for (int i = 0; i < kTile / kRowsAtOnce; ++i) {
        const int row = row0 + i * kRowsAtOnce;
        const float value = to_float(at[min(row, from.rows - 1) * from.stride]);
        tile[row * kStride + column] = row < rows ? value : 0.0f;
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

// A score: a product, rounded before anything is subtracted from it, as its maximum and lse were.
__device__ __forceinline__ float scaled(float product, float scale) {
    return __fmul_rn(product, scale);
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

// Blocks of the kernels that produce columns of heads; `areas`: tiles in shared memory.
template <typename T>
void launch_general(const char* name, void (*kernel)(const GeneralArguments<T>), int areas,
                    int heads_of_results, int parts, const GeneralArguments<T>& p,
                    Stream stream) {
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

}  // namespace general
}  // namespace lmo::cuda
