// Our own matrix product for one tile of C: both operands are packed into contiguous strips, and a
// micro-kernel keeps a small block of C in registers. It needs no library, is the reference for the
// others, and adds each element's k products in the same order for any number of threads.
#include "llmc/cpu/elements.h"

namespace lmo::cpu::LMO_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

constexpr int strip_rows = 6;         // of A in one strip
constexpr int64_t block_depth = 256;  // of k packed at a time

template <typename T>
struct Vector {
    typedef T type __attribute__((vector_size(vector_bytes)));
    static constexpr int lanes = vector_bytes / static_cast<int>(sizeof(T));
};
template <typename T>
constexpr int strip_columns = 2 * Vector<T>::lanes;  // of B in one strip

// a [strip_rows per k], b [strip_columns per k] packed; block [strip_rows, strip_columns] += a b.
template <typename T>
inline void multiply_strips(const T* a, const T* b, int64_t depth, T* block) {
    using V = typename Vector<T>::type;
    constexpr int lanes = Vector<T>::lanes;
    V sums[strip_rows][2] = {};
    for (int64_t p = 0; p < depth; ++p) {
        V b0, b1;
        __builtin_memcpy(&b0, b, sizeof b0);
        __builtin_memcpy(&b1, b + lanes, sizeof b1);
        for (int i = 0; i < strip_rows; ++i) {
            sums[i][0] += a[i] * b0;
            sums[i][1] += a[i] * b1;
        }
        a += strip_rows;
        b += 2 * lanes;
    }
    __builtin_memcpy(block, sums, sizeof sums);
}

// Rows [0, rows) of op(X) x depth, from k = first on, as strips of `strip` rows, filled up with 0.
template <typename T, int strip>
void pack(const T* x, int64_t row_stride, int64_t k_stride, int64_t rows, int64_t first,
          int64_t depth, T* packed) {
    for (int64_t r = 0; r < rows; r += strip) {
        const int64_t valid = rows - r < strip ? rows - r : strip;
        for (int64_t p = 0; p < depth; ++p) {
            const T* from = x + r * row_stride + (first + p) * k_stride;
            for (int64_t i = 0; i < valid; ++i) packed[i] = from[i * row_stride];
            for (int64_t i = valid; i < strip; ++i) packed[i] = 0;
            packed += strip;
        }
    }
}

template <typename T>
void gemm_tile(const GemmTile& tile) {
    constexpr int columns = strip_columns<T>;
    alignas(64) T packed_a[gemm_tile_rows * block_depth];
    alignas(64) T packed_b[gemm_tile_columns * block_depth];
    alignas(64) T block[strip_rows * columns];
    const T* a = static_cast<const T*>(tile.a);
    const T* b = static_cast<const T*>(tile.b);
    T* c = static_cast<T*>(tile.c);
    const T alpha = static_cast<T>(tile.alpha), beta = static_cast<T>(tile.beta);

    for (int64_t i = 0; i < tile.m; ++i) {  // beta = 0 does not read c
        for (int64_t j = 0; j < tile.n; ++j) {
            T& element = c[i * tile.ldc + j];
            element = beta == 0 ? T(0) : beta * element;
        }
    }
    for (int64_t first = 0; first < tile.k; first += block_depth) {
        const int64_t depth = tile.k - first < block_depth ? tile.k - first : block_depth;
        pack<T, strip_rows>(a, tile.transpose_a ? 1 : tile.lda, tile.transpose_a ? tile.lda : 1,
                            tile.m, first, depth, packed_a);
        pack<T, columns>(b, tile.transpose_b ? tile.ldb : 1, tile.transpose_b ? 1 : tile.ldb,
                         tile.n, first, depth, packed_b);
        for (int64_t j = 0; j < tile.n; j += columns) {
            const int64_t width = tile.n - j < columns ? tile.n - j : columns;
            for (int64_t i = 0; i < tile.m; i += strip_rows) {
                const int64_t height = tile.m - i < strip_rows ? tile.m - i : strip_rows;
                multiply_strips<T>(packed_a + i * depth, packed_b + j * depth, depth, block);
                for (int64_t y = 0; y < height; ++y) {
                    T* row = c + (i + y) * tile.ldc + j;
                    for (int64_t x = 0; x < width; ++x) row[x] += alpha * block[y * columns + x];
                }
            }
        }
    }
}

}  // namespace

void add_gemm_kernels(Kernels& table) {
    table.gemm_tile_f32 = gemm_tile<float>;
    table.gemm_tile_f64 = gemm_tile<double>;
}

}  // namespace lmo::cpu::LMO_ISA
