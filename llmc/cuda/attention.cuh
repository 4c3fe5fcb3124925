// What the attention kernels share: where heads lie in memory, and the products of a warp.
//
// Letters: B sequences, T positions, H query heads, K key/value heads, D head size.
//   qkv, dqkv [B, T, (H + 2K) D]: query heads, then keys, then values;  out, dout [B, T, H D];
//   lse [B, H, T].
#pragma once

#include <cmath>

#include "llmc/core/tensor.h"
#include "llmc/cuda/tile.cuh"

namespace lmo::cuda {

struct AttentionHeads {
    int64_t batch;
    int positions, heads, kv_heads, size;
    float scale;  // of the scores: 1 / sqrt(D)

    AttentionHeads(const Tensor& qkv, int heads_, int kv_heads_)
        : batch(qkv.shape[0]),
          positions(static_cast<int>(qkv.shape[1])),
          heads(heads_),
          kv_heads(kv_heads_),
          size(static_cast<int>(qkv.shape[2] / (heads_ + 2 * kv_heads_))),
          scale(static_cast<float>(1.0 / std::sqrt(static_cast<double>(size)))) {
        assert(heads % kv_heads == 0 && qkv.shape[2] == int64_t{heads + 2 * kv_heads} * size);
        assert(qkv.shape[1] <= INT32_MAX - 1024 && qkv.shape[2] <= INT32_MAX / 128);
    }

    __host__ __device__ int group() const { return heads / kv_heads; }
    // Elements from one position to the next.
    __host__ __device__ int stride() const { return (heads + 2 * kv_heads) * size; }
    __host__ __device__ int out_stride() const { return heads * size; }
    // Element of a position and a head, in qkv and in out; place of its row in lse.
    __device__ int64_t query(int64_t b, int64_t t, int h) const {
        return (b * positions + t) * stride() + int64_t{h} * size;
    }
    __device__ int64_t key(int64_t b, int64_t t, int kv_head) const {
        return query(b, t, heads + kv_head);
    }
    __device__ int64_t value(int64_t b, int64_t t, int kv_head) const {
        return query(b, t, heads + kv_heads + kv_head);
    }
    __device__ int64_t output(int64_t b, int64_t t, int h) const {
        return (b * positions + t) * out_stride() + int64_t{h} * size;
    }
    __device__ int64_t row(int64_t b, int h) const { return (b * heads + h) * positions; }
};

// What a block works on, from its index: tiles of a head are neighbours, then heads, then
// sequences, so that blocks that run together share keys and values in the L2 cache. All of it is
// folded into x, the one grid dimension without a limit that matters.
struct AttentionItem {
    int tile, head, batch;

    __device__ AttentionItem(unsigned tiles, unsigned heads)
        : tile(blockIdx.x % tiles),
          head(blockIdx.x / tiles % heads),
          batch(blockIdx.x / tiles / heads) {}
};

inline dim3 attention_grid(int64_t batch, int heads, int64_t tiles) {
    const int64_t blocks = batch * heads * tiles;
    assert(blocks <= INT32_MAX);
    return dim3(static_cast<unsigned>(blocks));
}

// True where the tensor-core kernels apply: bf16, D a multiple of 8 up to 128 (narrower heads are
// filled up with zeros to 64 or 128), all rows aligned to 16 bytes.
template <typename... Pointers>
bool attention_on_tensor_cores(const Tensor& qkv, const AttentionHeads& heads,
                               Pointers... pointers) {
    return qkv.dtype == DType::bf16 && heads.size <= 128 &&
           rows_aligned<bf16>(heads.size, qkv.data, pointers...);
}

// ---- products of a warp: 16 rows of A, accumulated in fp32 fragments, one per 8 columns ---------

// The A operand: 16 rows of a tile with Size columns, either kept in registers, or read again from
// the tile for every product where registers are short.
template <int Size, bool Keep>
struct WarpRows {
    uint32_t kept[Keep ? Size / 16 : 1][4];
    const bf16* tile = nullptr;
    int first = 0;

    __device__ __forceinline__ void read(const bf16* tile_, int first_row) {
        tile = tile_;
        first = first_row;
        if constexpr (Keep) {
#pragma unroll
            for (int k = 0; k < Size / 16; ++k) load_a<Size>(kept[k], tile, first, 2 * k);
        }
    }
    __device__ __forceinline__ void fragment(uint32_t (&a)[4], int k) const {
        if constexpr (Keep) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] = kept[k][i];
        } else {
            load_a<Size>(a, tile, first, 2 * k);
        }
    }
};

// acc (16 x N) += A (16 x Size) B^T, with B a tile of N rows and Size columns.
template <int Size, int N, bool Keep>
__device__ __forceinline__ void add_product_transposed(float (&acc)[N / 8][4],
                                                       const WarpRows<Size, Keep>& rows,
                                                       const bf16* tile) {
#pragma unroll
    for (int k = 0; k < Size / 16; ++k) {
        uint32_t a[4];
        rows.fragment(a, k);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            uint32_t b[4];
            load_b_rows<Size>(b, tile, n * 16, 2 * k);
            mma_m16n8k16<bf16>(acc[2 * n], a, b[0], b[1]);
            mma_m16n8k16<bf16>(acc[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// acc (16 x Size) += bf16(x) (16 x N) B, with B a tile of N rows and Size columns; and a second
// product with the same B, which is read once.
template <int Size, int N>
__device__ __forceinline__ void add_product(float (&acc)[Size / 8][4], const float (&x)[N / 8][4],
                                            const bf16* tile) {
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
        uint32_t a[4];
        to_a<bf16>(a, x[2 * k], x[2 * k + 1]);
#pragma unroll
        for (int n = 0; n < Size / 16; ++n) {
            uint32_t b[4];
            load_b_columns<Size>(b, tile, k * 16, 2 * n);
            mma_m16n8k16<bf16>(acc[2 * n], a, b[0], b[1]);
            mma_m16n8k16<bf16>(acc[2 * n + 1], a, b[2], b[3]);
        }
    }
}
template <int Size, int N>
__device__ __forceinline__ void add_products(float (&acc)[Size / 8][4], const float (&x)[N / 8][4],
                                             float (&acc2)[Size / 8][4],
                                             const float (&x2)[N / 8][4], const bf16* tile) {
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
        uint32_t a[4], a2[4];
        to_a<bf16>(a, x[2 * k], x[2 * k + 1]);
        to_a<bf16>(a2, x2[2 * k], x2[2 * k + 1]);
#pragma unroll
        for (int n = 0; n < Size / 16; ++n) {
            uint32_t b[4];
            load_b_columns<Size>(b, tile, k * 16, 2 * n);
            mma_m16n8k16<bf16>(acc[2 * n], a, b[0], b[1]);
            mma_m16n8k16<bf16>(acc[2 * n + 1], a, b[2], b[3]);
            mma_m16n8k16<bf16>(acc2[2 * n], a2, b[0], b[1]);
            mma_m16n8k16<bf16>(acc2[2 * n + 1], a2, b[2], b[3]);
        }
    }
}

// Writes a warp's 16 x Size accumulator, rows g and g + 8 of a quad scaled, to rows of a matrix:
// those below `rows` and columns below `columns`. It passes through 16 rows of a tile that no other
// warp uses any more, for stores of 16 bytes.
template <int Size>
__device__ __forceinline__ void store_rows(bf16* to, int stride, int rows, int columns,
                                           const float (&acc)[Size / 8][4], float scale_low,
                                           float scale_high, bf16* tile) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < Size / 8; ++n) {
        uint32_t* low = reinterpret_cast<uint32_t*>(tile + tile_offset<Size>(g, n));
        uint32_t* high = reinterpret_cast<uint32_t*>(tile + tile_offset<Size>(g + 8, n));
        low[t] = pack_pair<bf16>(acc[n][0] * scale_low, acc[n][1] * scale_low);
        high[t] = pack_pair<bf16>(acc[n][2] * scale_high, acc[n][3] * scale_high);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Size / 16; ++i) {
        const int row = (lane + 32u * i) / (Size / 8), chunk = lane & (Size / 8 - 1);
        if (row < rows && 8 * chunk < columns) {
            store(to + int64_t{row} * stride + 8 * chunk,
                  load<8>(tile + tile_offset<Size>(row, chunk)));
        }
    }
}

// Scores that the causal mask hides become -infinity. Rows are queries (`row` and row + 8 are this
// lane's) and columns keys from first_key on; or, transposed, rows are keys and columns queries.
template <int N>
__device__ __forceinline__ void mask_future(float (&s)[N][4], int first_key, int row) {
    const int key = first_key + (threadIdx.x & 3) * 2;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (key + 8 * n + e % 2 > row + e / 2 * 8) s[n][e] = -INFINITY;
        }
    }
}
template <int N>
__device__ __forceinline__ void mask_past(float (&s)[N][4], int first_query, int row) {
    const int query = first_query + (threadIdx.x & 3) * 2;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (query + 8 * n + e % 2 < row + e / 2 * 8) s[n][e] = -INFINITY;
        }
    }
}

// Over the four lanes that share a row of fragments.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

constexpr float kLog2E = 1.4426950408889634f;

}  // namespace lmo::cuda
