// Tiles of 16-bit elements in shared memory, and the fragments of mma.m16n8k16 that a warp reads
// from them.
//
// A tile is row-major without padding. The chunks of 16 bytes of a row are permuted (chunk c of row
// r lies at place c xor r mod 8), so that the eight rows which one phase of ldmatrix reads at one
// chunk lie in eight different groups of banks, and so do the eight neighbouring chunks that one
// phase of a copy writes: no conflicts. The layout of fragments is in ptx.cuh: the D fragments of
// two neighbouring 8-column blocks, rounded to 16 bits, are the A fragment of a 16 x 16 block.
#pragma once

#include "llmc/cuda/common.cuh"
#include "llmc/cuda/ptx.cuh"

namespace lmo::cuda {

// Place, in elements, of chunk `chunk` (8 elements) of row `row` in a tile of Columns columns.
template <int Columns>
__host__ __device__ constexpr int tile_offset(int row, int chunk) {
    constexpr int kChunks = Columns / 8;
    static_assert(kChunks == 4 || kChunks % 8 == 0, "rows of 64 bytes or multiples of 128 bytes");
    return row * Columns + 8 * (kChunks == 4 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7));
}

namespace detail {
template <int Columns>
constexpr bool free_of_conflicts() {
    for (int first = 0; first < 16; first += 8) {
        for (int chunk = 0; chunk < Columns / 8; ++chunk) {
            int groups = 0;
            for (int r = 0; r < 8; ++r) {
                groups |= 1 << (tile_offset<Columns>(first + r, chunk) / 8 % 8);
            }
            if (groups != 0xff) return false;
        }
    }
    return true;
}
static_assert(free_of_conflicts<32>() && free_of_conflicts<64>() && free_of_conflicts<128>());
}  // namespace detail

// Starts the copy of a block of a row-major matrix into a tile by cp.async. `from` is the block's
// first element, 16-byte aligned; `stride` is a multiple of 8. Rows from `rows` on and columns from
// `columns` on become zero and are not read.
template <int Rows, int Columns, int Threads, typename T>
__device__ __forceinline__ void load_tile(T* tile, const T* from, int stride, int rows,
                                          int columns) {
    constexpr int kChunks = Columns / 8, kRowsAtOnce = Threads / kChunks;
    static_assert(Threads % kChunks == 0 && Rows % kRowsAtOnce == 0);
    const int chunk = threadIdx.x % kChunks;
    const int bytes = 2 * max(0, min(8, columns - 8 * chunk));
#pragma unroll
    for (int i = 0; i < Rows / kRowsAtOnce; ++i) {
        const int row = threadIdx.x / kChunks + i * kRowsAtOnce;
        cp_async_16(tile + tile_offset<Columns>(row, chunk),
                    from + int64_t{row} * stride + 8 * chunk, row < rows ? bytes : 0);
    }
}

namespace detail {
// The same row of a tile `chunks` (an even number) further: its place differs in these bits of the
// address alone, because tiles are aligned to their rows. One instruction, where adding the
// difference would cost a register for each chunk.
template <typename T>
__device__ __forceinline__ const T* toggle_chunk(const T* row, int chunks) {
#ifdef LMO_EMULATE_CUDA
    return reinterpret_cast<const T*>(reinterpret_cast<uintptr_t>(row) ^ (16 * chunks));
#else
    return static_cast<const T*>(
        __cvta_shared_to_generic(__cvta_generic_to_shared(row) ^ (16 * chunks)));
#endif
}
}  // namespace detail

// The A fragment of rows first_row.. (16) and chunks first_chunk.. (2, that is 16 columns).
// Here and below, first rows are multiples of 8 and first chunks even; tiles are aligned to 256
// bytes.
template <int Columns, typename T>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const T* tile, int first_row,
                                       int first_chunk) {
    const int lane = threadIdx.x & 31;
    const T* const row = tile + tile_offset<Columns>(lane & 15, lane >> 4);
    ldmatrix_x4(a, detail::toggle_chunk(row, first_chunk) + first_row * Columns);
}

// B fragments {b[0], b[1]} and {b[2], b[3]} of result columns n.. and n + 8.. (8 each), from a tile
// with one row a result column: element (k, n) of B is tile[n][k].
template <int Columns, typename T>
__device__ __forceinline__ void load_b_rows(uint32_t (&b)[4], const T* tile, int n, int k_chunk) {
    const int lane = threadIdx.x & 31;
    const T* const row = tile + tile_offset<Columns>((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
    ldmatrix_x4(b, detail::toggle_chunk(row, k_chunk) + n * Columns);
}

// The same from a tile that holds B as it is: element (k, n) is tile[k][n].
template <int Columns, typename T>
__device__ __forceinline__ void load_b_columns(uint32_t (&b)[4], const T* tile, int k,
                                               int n_chunk) {
    const int lane = threadIdx.x & 31;
    const T* const row = tile + tile_offset<Columns>(lane & 15, lane >> 4);
    ldmatrix_x4_transposed(b, detail::toggle_chunk(row, n_chunk) + k * Columns);
}

// A fragment from two neighbouring D fragments, rounded.
template <typename T>
__device__ __forceinline__ void to_a(uint32_t (&a)[4], const float (&left)[4],
                                     const float (&right)[4]) {
    a[0] = pack_pair<T>(left[0], left[1]);
    a[1] = pack_pair<T>(left[2], left[3]);
    a[2] = pack_pair<T>(right[0], right[1]);
    a[3] = pack_pair<T>(right[2], right[3]);
}

template <int N>
__device__ __forceinline__ void set_zero(float (&fragments)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) fragments[n][e] = 0.0f;
    }
}

}  // namespace lmo::cuda
