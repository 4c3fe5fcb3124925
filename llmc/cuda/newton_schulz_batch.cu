// Elements are scaled in double, so no fp32 input can overflow or vanish on the way.
//
// Wide matrices: a thread moves 8 neighbours of a row of X. Tall ones: a block transposes a tile
// of 64 x 64 elements through shared memory, by accesses of 16 bytes on both sides.
#include "llmc/cuda/newton_schulz_batch.h"

#include <algorithm>

#include "llmc/cuda/common.cuh"

namespace lmo::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64;  // rows and columns of a tile

struct Matrices {
    float* data[kBatchMatrices];
};

// ---- eight neighbours ---------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ void store_eight(T* to, const float (&values)[8]) {
    constexpr int N = kWidth<T>;
#pragma unroll
    for (int part = 0; part < 8; part += N) {
        Vector<T, N> vector;
#pragma unroll
        for (int k = 0; k < N; ++k) vector[k] = from_float<T>(values[part + k]);
        store(to + part, vector);
    }
}

template <typename T>
__device__ __forceinline__ void load_eight(const T* from, float (&values)[8]) {
    constexpr int N = kWidth<T>;
#pragma unroll
    for (int part = 0; part < 8; part += N) {
        const Vector<T, N> vector = load<N>(from + part);
#pragma unroll
        for (int k = 0; k < N; ++k) values[part + k] = to_float(vector[k]);
    }
}

// Elements of a row of x from column j on, `count` of which exist; the others are 0, or not
// written.
template <int Count>
__device__ __forceinline__ void load_some(const float* from, int64_t count,
                                          float (&values)[Count]) {
    if (count >= Count && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll
        for (int part = 0; part < Count; part += 4) {
            const Vector<float, 4> vector = load<4>(from + part);
#pragma unroll
            for (int k = 0; k < 4; ++k) values[part + k] = vector[k];
        }
        return;
    }
#pragma unroll
    for (int k = 0; k < Count; ++k) values[k] = k < count ? from[k] : 0.0f;
}

template <int Count>
__device__ __forceinline__ void store_some(float* to, int64_t count, const float (&values)[Count]) {
    if (count >= Count && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
#pragma unroll
        for (int part = 0; part < Count; part += 4) {
            Vector<float, 4> vector;
#pragma unroll
            for (int k = 0; k < 4; ++k) vector[k] = values[part + k];
            store(to + part, vector);
        }
        return;
    }
#pragma unroll
    for (int k = 0; k < Count; ++k) {
        if (k < count) to[k] = values[k];
    }
}

// What one thread of a block computes for all: double arithmetic is slow on many devices.
__device__ __forceinline__ double factor_of(const Normalisation& n) {
    return 1.0 / (sqrt(n.squares[blockIdx.y]) * n.norm_scale + n.eps);
}

template <int Count>
__device__ __forceinline__ void scale_all(double factor, float (&values)[Count]) {
#pragma unroll
    for (int k = 0; k < Count; ++k) values[k] = static_cast<float>(factor * values[k]);
}

// ---- wide matrices ------------------------------------------------------------------------------
// blockIdx.y is the matrix; a row of blocks has a thread for each eight elements of X.

struct Place {
    int64_t i, j;  // i may lie outside
};
__device__ __forceinline__ Place place_of(const BatchShape& shape) {
    const uint32_t across = static_cast<uint32_t>(shape.longer / 8);
    const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
    return {index / across, int64_t{index % across} * 8};
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    import_kernel(const __grid_constant__ Matrices matrices, const BatchShape shape,
                  const Normalisation normalisation, T* to) {
    LMO_SHARED(double, factor, [1]);
    if (threadIdx.x == 0) factor[0] = factor_of(normalisation);
    __syncthreads();
    const auto [i, j] = place_of(shape);
    if (i >= shape.shorter) return;
    float values[8] = {};
    if (i < shape.rows) {
        load_some(matrices.data[blockIdx.y] + i * shape.columns + j, shape.columns - j, values);
    }
    scale_all(factor[0], values);
    store_eight(to + (blockIdx.y * shape.shorter + i) * shape.longer + j, values);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) export_kernel(const __grid_constant__ Matrices matrices,
                                                          const BatchShape shape, const T* from) {
    const auto [i, j] = place_of(shape);
    if (i >= shape.rows) return;
    float values[8];
    load_eight(from + (blockIdx.y * shape.shorter + i) * shape.longer + j, values);
    store_some(matrices.data[blockIdx.y] + i * shape.columns + j, shape.columns - j, values);
}

// ---- tall matrices ------------------------------------------------------------------------------
// blockIdx.y is the matrix, blockIdx.x a tile of x, which is row by row in shared memory. Groups of
// four columns are swapped by row, so that neither fours along a row nor eights down a column meet
// in a bank.

__device__ __forceinline__ int in_tile(int i, int j) { return i * kTile + (j ^ (i / 8 % 8 * 4)); }

struct TileOrigin {
    int64_t row, column;  // of x
};
__device__ __forceinline__ TileOrigin tile_origin(const BatchShape& shape) {
    const uint32_t across = static_cast<uint32_t>(div_up<int64_t>(shape.shorter, kTile));
    return {int64_t{blockIdx.x / across} * kTile, int64_t{blockIdx.x % across} * kTile};
}

// The tile's rows and columns of a thread's vectors: four along a row of x, eight down a column,
// which are eight along a row of X.
constexpr int kFours = kTile * kTile / 4 / kThreads, kEights = kTile * kTile / 8 / kThreads;
__device__ __forceinline__ int2 four_of(int v) {
    const int index = v * kThreads + static_cast<int>(threadIdx.x);
    return {index / (kTile / 4), index % (kTile / 4) * 4};
}
__device__ __forceinline__ int2 eight_of(int v) {
    const int index = v * kThreads + static_cast<int>(threadIdx.x);
    return {index % (kTile / 8) * 8, index / (kTile / 8)};
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    import_transposed_kernel(const __grid_constant__ Matrices matrices, const BatchShape shape,
                             const Normalisation normalisation, T* to) {
    LMO_SHARED(double, factor, [1]);
    LMO_SHARED(float, tile, [kTile * kTile]);
    if (threadIdx.x == 0) factor[0] = factor_of(normalisation);
    const TileOrigin origin = tile_origin(shape);
#pragma unroll
    for (int v = 0; v < kFours; ++v) {
        const int2 at = four_of(v);
        const int64_t i = origin.row + at.x, j = origin.column + at.y;
        float values[4] = {};
        if (i < shape.rows) {
            load_some(matrices.data[blockIdx.y] + i * shape.columns + j, shape.columns - j, values);
        }
        store_shared(tile + in_tile(at.x, at.y),
                     Vector<float, 4>{{values[0], values[1], values[2], values[3]}});
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < kEights; ++v) {
        const int2 at = eight_of(v);
        const int64_t i = origin.row + at.x, j = origin.column + at.y;
        if (i >= shape.longer || j >= shape.shorter) continue;
        float values[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) values[k] = tile[in_tile(at.x + k, at.y)];
        scale_all(factor[0], values);
        store_eight(to + (blockIdx.y * shape.shorter + j) * shape.longer + i, values);
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    export_transposed_kernel(const __grid_constant__ Matrices matrices, const BatchShape shape,
                             const T* from) {
    LMO_SHARED(float, tile, [kTile * kTile]);
    const TileOrigin origin = tile_origin(shape);
#pragma unroll
    for (int v = 0; v < kEights; ++v) {
        const int2 at = eight_of(v);
        const int64_t i = origin.row + at.x, j = origin.column + at.y;
        if (i >= shape.longer || j >= shape.shorter) continue;
        float values[8];
        load_eight(from + (blockIdx.y * shape.shorter + j) * shape.longer + i, values);
#pragma unroll
        for (int k = 0; k < 8; ++k) tile[in_tile(at.x + k, at.y)] = values[k];
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < kFours; ++v) {
        const int2 at = four_of(v);
        const int64_t i = origin.row + at.x, j = origin.column + at.y;
        if (i >= shape.rows || j >= shape.columns) continue;
        float values[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) values[k] = tile[in_tile(at.x, at.y + k)];
        store_some(matrices.data[blockIdx.y] + i * shape.columns + j, shape.columns - j, values);
    }
}

// ---- squares ------------------------------------------------------------------------------------

// blockIdx.y is the matrix; a thread for each eight elements.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    affine_kernel(T* to, const T* from, int64_t n, float scale, float diagonal) {
    const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8;
    if (at >= n * n) return;
    const int64_t matrix = blockIdx.y * n * n, i = at / n, j = at - i * n;
    float values[8];
    load_eight(from + matrix + at, values);
#pragma unroll
    for (int k = 0; k < 8; ++k) values[k] = fmaf(scale, values[k], j + k == i ? diagonal : 0.0f);
    store_eight(to + matrix + at, values);
}

// ---- launches -----------------------------------------------------------------------------------

int64_t round_up(int64_t value) { return div_up<int64_t>(value, 8) * 8; }

template <typename F>
void for_inner_type(DType type, F&& f) {
    assert(type == DType::f16 || type == DType::bf16 || type == DType::f32);
    if (type == DType::f16) return f(Type<fp16>());
    if (type == DType::bf16) return f(Type<bf16>());
    f(Type<float>());
}

Matrices matrices_of(std::span<const Tensor> x, const BatchShape& shape) {
    assert(x.size() <= static_cast<size_t>(kBatchMatrices));
    Matrices matrices{};
    for (size_t i = 0; i < x.size(); ++i) {
        assert(x[i].dtype == DType::f32 && x[i].shape[0] == shape.rows &&
               x[i].shape[1] == shape.columns);
        matrices.data[i] = x[i].as<float>();
    }
    return matrices;
}

dim3 grid_of(int64_t blocks, size_t matrices) {
    assert(blocks <= INT32_MAX);
    return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(matrices));
}

int64_t eights(const BatchShape& shape) { return div_up<int64_t>(shape.elements() / 8, kThreads); }

int64_t tiles(const BatchShape& shape) {
    return div_up<int64_t>(shape.longer, kTile) * div_up<int64_t>(shape.shorter, kTile);
}

}  // namespace

BatchShape::BatchShape(const Shape& shape)
    : rows(shape[0]),
      columns(shape[1]),
      shorter(round_up(std::min(rows, columns))),
      longer(round_up(std::max(rows, columns))) {}

void bring_in(std::span<const Tensor> x, const BatchShape& shape,
              const Normalisation& normalisation, DType inner, void* batch, cudaStream_t stream) {
    const Matrices matrices = matrices_of(x, shape);
    for_inner_type(inner, [&](auto type) {
        using T = typename decltype(type)::type;
        T* to = static_cast<T*>(batch);
        if (shape.tall()) {
            launch(LMO_KERNEL(import_transposed_kernel<T>), grid_of(tiles(shape), x.size()),
                   kThreads, 0, stream, matrices, shape, normalisation, to);
        } else {
            launch(LMO_KERNEL(import_kernel<T>), grid_of(eights(shape), x.size()), kThreads, 0,
                   stream, matrices, shape, normalisation, to);
        }
    });
}

void write_back(std::span<const Tensor> x, const BatchShape& shape, DType inner, const void* batch,
                cudaStream_t stream) {
    const Matrices matrices = matrices_of(x, shape);
    for_inner_type(inner, [&](auto type) {
        using T = typename decltype(type)::type;
        const T* from = static_cast<const T*>(batch);
        if (shape.tall()) {
            launch(LMO_KERNEL(export_transposed_kernel<T>), grid_of(tiles(shape), x.size()),
                   kThreads, 0, stream, matrices, shape, from);
        } else {
            launch(LMO_KERNEL(export_kernel<T>), grid_of(eights(shape), x.size()), kThreads, 0,
                   stream, matrices, shape, from);
        }
    });
}

void affine(void* to, const void* from, DType inner, int64_t matrices, int64_t n, double scale,
            double diagonal, cudaStream_t stream) {
    assert(n % 8 == 0);
    for_inner_type(inner, [&](auto type) {
        using T = typename decltype(type)::type;
        launch(LMO_KERNEL(affine_kernel<T>),
               grid_of(div_up<int64_t>(n * n / 8, kThreads), static_cast<size_t>(matrices)),
               kThreads, 0, stream, static_cast<T*>(to), static_cast<const T*>(from), n,
               static_cast<float>(scale), static_cast<float>(diagonal));
    });
}

}  // namespace lmo::cuda
