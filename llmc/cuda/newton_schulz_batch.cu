// Elements are scaled in double, so no fp32 input can overflow or vanish on the way.
//
// Wide matrices: a thread moves 8 neighbours of a row of X. Tall ones: a block transposes a tile
// of 64 x 64 elements through shared memory, by accesses of 16 bytes on both sides.
//
// Where the elements come from and go to is a Source and a Sink of newton_schulz_lists.cuh.
#include "llmc/cuda/newton_schulz_batch.h"

#include <algorithm>

#include "llmc/cuda/newton_schulz_lists.cuh"

namespace lmo::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64;  // rows and columns of a tile

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

template <typename T, typename Source>
__global__ void __launch_bounds__(kThreads)
    import_kernel(const __grid_constant__ Source source, const BatchShape shape,
                  const Normalisation normalisation, T* to) {
    LMO_SHARED(double, factor, [1]);
    LMO_SHARED(typename Source::Coefficients, coefficients, [1]);
    wait_for_previous();
    if (threadIdx.x == 0) {
        factor[0] = factor_of(normalisation);
        coefficients[0] = source.coefficients();
    }
    __syncthreads();
    const auto [i, j] = place_of(shape);
    if (i >= shape.shorter) return;
    float values[8] = {};
    if (i < shape.rows) {
        source.read(coefficients[0], i * shape.columns + j, shape.columns - j, values);
    }
    scale_all(factor[0], values);
    store_eight(to + (blockIdx.y * shape.shorter + i) * shape.longer + j, values);
}

template <typename T, typename Sink>
__global__ void __launch_bounds__(kThreads)
    export_kernel(const __grid_constant__ Sink sink, const BatchShape shape, const T* from) {
    LMO_SHARED(typename Sink::Coefficients, coefficients, [1]);
    wait_for_previous();
    if (threadIdx.x == 0) coefficients[0] = sink.coefficients();
    __syncthreads();
    const auto [i, j] = place_of(shape);
    if (i >= shape.rows) return;
    float values[8];
    load_eight(from + (blockIdx.y * shape.shorter + i) * shape.longer + j, values);
    sink.write(coefficients[0], i * shape.columns + j, shape.columns - j, values);
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

template <typename T, typename Source>
__global__ void __launch_bounds__(kThreads)
    import_transposed_kernel(const __grid_constant__ Source source, const BatchShape shape,
                             const Normalisation normalisation, T* to) {
    LMO_SHARED(double, factor, [1]);
    LMO_SHARED(typename Source::Coefficients, coefficients, [1]);
    LMO_SHARED(float, tile, [kTile * kTile]);
    wait_for_previous();
    if (threadIdx.x == 0) {
        factor[0] = factor_of(normalisation);
        coefficients[0] = source.coefficients();
    }
    __syncthreads();
    const TileOrigin origin = tile_origin(shape);
#pragma unroll
    for (int v = 0; v < kFours; ++v) {
        const int2 at = four_of(v);
        const int64_t i = origin.row + at.x, j = origin.column + at.y;
        float values[4] = {};
        if (i < shape.rows) {
            source.read(coefficients[0], i * shape.columns + j, shape.columns - j, values);
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

template <typename T, typename Sink>
__global__ void __launch_bounds__(kThreads)
    export_transposed_kernel(const __grid_constant__ Sink sink, const BatchShape shape,
                             const T* from) {
    LMO_SHARED(typename Sink::Coefficients, coefficients, [1]);
    LMO_SHARED(float, tile, [kTile * kTile]);
    wait_for_previous();
    if (threadIdx.x == 0) coefficients[0] = sink.coefficients();
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
        sink.write(coefficients[0], i * shape.columns + j, shape.columns - j, values);
    }
}

// ---- squares ------------------------------------------------------------------------------------

// blockIdx.y is the matrix; a thread for each eight elements.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    affine_kernel(T* to, const T* from, int64_t n, float scale, float diagonal) {
    const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8;
    wait_for_previous();
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

template <typename T>
Addresses<T> addresses_of(std::span<const Tensor> list, const BatchShape& shape) {
    assert(list.size() <= static_cast<size_t>(kBatchMatrices));
    Addresses<T> addresses{};
    for (size_t i = 0; i < list.size(); ++i) {
        assert(list[i].shape[0] == shape.rows && list[i].shape[1] == shape.columns);
        addresses.data[i] = list[i].as<T>();
    }
    return addresses;
}

Matrices matrices_of(std::span<const Tensor> list, const BatchShape& shape) {
    assert(all_float(list));
    return addresses_of<float>(list, shape);
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

namespace {

template <typename Source>
void bring_in_from(const Source& source, size_t matrices, const BatchShape& shape,
                   const Normalisation& normalisation, DType inner, void* batch,
                   Stream stream) {
    for_inner_type(inner, [&](auto type) {
        using T = typename decltype(type)::type;
        const auto run = [&](const char* name, auto kernel, int64_t blocks) {
            launch(name, kernel, grid_of(blocks, matrices), kThreads, 0, stream, source, shape,
                   normalisation, static_cast<T*>(batch));
        };
        shape.tall() ? run(LMO_KERNEL(import_transposed_kernel<T, Source>), tiles(shape))
                     : run(LMO_KERNEL(import_kernel<T, Source>), eights(shape));
    });
}

template <typename Sink>
void write_back_to(const Sink& sink, size_t matrices, const BatchShape& shape, DType inner,
                   const void* batch, Stream stream) {
    for_inner_type(inner, [&](auto type) {
        using T = typename decltype(type)::type;
        const auto run = [&](const char* name, auto kernel, int64_t blocks) {
            launch(name, kernel, grid_of(blocks, matrices), kThreads, 0, stream, sink, shape,
                   static_cast<const T*>(batch));
        };
        shape.tall() ? run(LMO_KERNEL(export_transposed_kernel<T, Sink>), tiles(shape))
                     : run(LMO_KERNEL(export_kernel<T, Sink>), eights(shape));
    });
}

WeightMatrices<FloatWeights> weight_matrices(Type<FloatWeights>, const Apply& op,
                                             const BatchShape& shape) {
    return {matrices_of(op.weights, shape)};
}
template <typename Copy>
WeightMatrices<CopiedWeights<Copy>> weight_matrices(Type<CopiedWeights<Copy>>, const Apply& op,
                                                    const BatchShape& shape) {
    return {matrices_of(op.weights, shape), addresses_of<Copy>(op.copies, shape)};
}
WeightMatrices<SplitWeights> weight_matrices(Type<SplitWeights>, const Apply& op,
                                             const BatchShape& shape) {
    return {addresses_of<bf16>(op.weights, shape), addresses_of<int16_t>(op.remainders, shape)};
}

template <typename Weights>
WeightSink<Weights> weight_sink(Type<Weights> form, const Apply& op, const BatchShape& shape) {
    WeightSink<Weights> sink{};
    sink.weights = weight_matrices(form, op, shape);
    std::copy(op.radius.begin(), op.radius.end(), sink.radius);
    std::copy(op.decay.begin(), op.decay.end(), sink.decay);
    sink.rate = op.rate.as<double>();
    sink.lr_scale = op.lr_scale;
    sink.cautious = op.cautious;
    return sink;
}

}  // namespace

void bring_in(std::span<const Tensor> x, const BatchShape& shape,
              const Normalisation& normalisation, DType inner, void* batch, Stream stream) {
    bring_in_from(PlainSource{matrices_of(x, shape)}, x.size(), shape, normalisation, inner, batch,
                  stream);
}

void bring_in(const Momentum& op, const BatchShape& shape, const Normalisation& normalisation,
              DType inner, void* batch, Stream stream) {
    const Matrices x = matrices_of(op.x, shape);
    if (op.momentum.empty()) {
        return bring_in_from(StatelessSource{x, stateless_update(op)}, op.x.size(), shape,
                             normalisation, inner, batch, stream);
    }
    bring_in_from(MomentumSource{x, matrices_of(op.momentum, shape), started_update(op)},
                  op.x.size(), shape, normalisation, inner, batch, stream);
}

void write_back(std::span<const Tensor> x, const BatchShape& shape, DType inner, const void* batch,
                Stream stream) {
    write_back_to(PlainSink{matrices_of(x, shape)}, x.size(), shape, inner, batch, stream);
}

void write_back(const Apply& op, const BatchShape& shape, DType inner, const void* batch,
                Stream stream) {
    assert(has_weights(op));
    for_weights(op, [&](auto form, const auto&...) {
        write_back_to(weight_sink(form, op, shape), op.weights.size(), shape, inner, batch, stream);
    });
}

void affine(void* to, const void* from, DType inner, int64_t matrices, int64_t n, double scale,
            double diagonal, Stream stream) {
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
