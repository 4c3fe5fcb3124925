// The one include of every kernel file: the dialect that nvcc compiles for the GPU and that g++
// compiles for the emulator (dev/emulator), from the same source.
//
// The dialect is CUDA C++ with these rules, which tests/check_kernels.py enforces:
//  * kernels are launched by launch(LMO_KERNEL(name<...>), ...), never by <<<>>>;
//  * every thread of a kernel calls wait_for_previous() before it touches global memory or ends;
//  * shared memory is declared by LMO_SHARED and LMO_DYNAMIC_SHARED, never by __shared__;
//  * PTX is in ptx.cuh and hopper.cuh alone; vectors of 16 bytes go through load and store below;
//  * no __activemask, no cooperative groups, no __CUDA_ARCH__: paths are template parameters, so
//    that all of them run in tests; no block waits for another one.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef LMO_EMULATE_CUDA
#include "dev/emulator/device.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include "llmc/core/dtype.h"
#include "llmc/cuda/check.h"
#include "llmc/cuda/dependent_launch.cuh"
#include "llmc/cuda/stream.h"

namespace lmo::cuda {

using bf16 = __nv_bfloat16;
using fp16 = __half;

// ---- shared memory ------------------------------------------------------------------------------
// LMO_SHARED(float, sums, [32]) declares `float sums[32]`; LMO_DYNAMIC_SHARED(bf16, tile) declares
// `bf16* tile`, the memory whose size the launch gives, aligned to 1024 bytes.

#ifndef LMO_EMULATE_CUDA
#define LMO_SHARED(type, name, dims) __shared__ type name dims
#define LMO_DYNAMIC_SHARED(type, name)                                          \
    extern __shared__ __align__(1024) unsigned char lmo_dynamic_shared_memory[]; \
    type* name = reinterpret_cast<type*>(lmo_dynamic_shared_memory)
#endif

// ---- launch -------------------------------------------------------------------------------------

// A kernel with its name in the source: LMO_KERNEL(row_kernel<float, 4>).
#define LMO_KERNEL(...) #__VA_ARGS__, __VA_ARGS__

// Launches kernel(arguments...), each converted to the kernel's own parameter type. A grid without
// blocks is no launch. Throws Error where the device refuses.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, Stream stream, Arguments&&... arguments) {
    static_assert(sizeof...(Parameters) == sizeof...(Arguments));
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    const cudaLaunchConfig_t config{grid,   block,  shared_bytes,
                                    stream, &early, stream.dependent ? 1u : 0u};
#ifdef LMO_EMULATE_CUDA
    emulator::launch(name, config, kernel,
                     static_cast<Parameters>(std::forward<Arguments>(arguments))...);
#else
    check(cudaLaunchKernelEx(&config, kernel,
                             static_cast<Parameters>(std::forward<Arguments>(arguments))...),
          name);
#endif
}

// Lets a kernel have more than 48 KB of dynamic shared memory.
template <typename... Parameters>
void allow_shared(const char* name, void (*kernel)(Parameters...), size_t bytes) {
    if (bytes <= 48 * 1024) return;
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)),
          name);
}

// ---- numbers ------------------------------------------------------------------------------------

template <typename T>
__host__ __device__ constexpr T div_up(T a, T b) {
    return (a + b - 1) / b;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(fp16 x) { return __half2float(x); }

// Rounds to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ fp16 from_float<fp16>(float x) {
    return __float2half_rn(x);
}

// Two values as one 32-bit register of a tensor-core fragment, `low` in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_pair<bf16>(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}
template <>
__device__ __forceinline__ uint32_t pack_pair<fp16>(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

// ---- vectors ------------------------------------------------------------------------------------

// N neighbours that one instruction moves: up to 16 bytes, aligned to their size.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
    static_assert(sizeof(T) * N <= 16 && (N & (N - 1)) == 0);
    T values[N];
    __host__ __device__ T& operator[](int i) { return values[i]; }
    __host__ __device__ const T& operator[](int i) const { return values[i]; }
};

// Elements of T in 16 bytes.
template <typename T>
constexpr int kWidth = 16 / sizeof(T);

#ifdef LMO_EMULATE_CUDA
// What g++ makes of a wide access need not be wide, so the emulator checks the address itself.
#define LMO_CHECK_ALIGNMENT(pointer, bytes) emulator::check_alignment(pointer, bytes)
#define LMO_CHECK_SHARED(pointer) emulator::check_shared(pointer)
#else
#define LMO_CHECK_ALIGNMENT(pointer, bytes) ((void)0)
#define LMO_CHECK_SHARED(pointer) ((void)0)
#endif

template <int Bytes>
struct Word;
template <>
struct Word<16> {
    using type = uint4;
};
template <>
struct Word<8> {
    using type = uint2;
};
template <>
struct Word<4> {
    using type = uint32_t;
};
template <>
struct Word<2> {
    using type = uint16_t;
};

template <int N, typename T>
__device__ __forceinline__ Vector<T, N> load(const T* from) {
    using W = typename Word<sizeof(T) * N>::type;
    LMO_CHECK_ALIGNMENT(from, sizeof(W));
    Vector<T, N> vector;
    const W word = *reinterpret_cast<const W*>(from);
    memcpy(&vector, &word, sizeof word);
    return vector;
}

// A load of data that nobody reads again soon: first to leave the caches.
template <int N, typename T>
__device__ __forceinline__ Vector<T, N> load_streaming(const T* from) {
    using W = typename Word<sizeof(T) * N>::type;
    LMO_CHECK_ALIGNMENT(from, sizeof(W));
    Vector<T, N> vector;
    const W word = __ldcs(reinterpret_cast<const W*>(from));
    memcpy(&vector, &word, sizeof word);
    return vector;
}

// To global memory. nvcc splits plain wide stores in some loops, so the instruction is named.
template <int N, typename T>
__device__ __forceinline__ void store(T* to, const Vector<T, N>& vector) {
    using W = typename Word<sizeof(T) * N>::type;
    LMO_CHECK_ALIGNMENT(to, sizeof(W));
    W word;
    memcpy(&word, &vector, sizeof word);
    if constexpr (sizeof(W) >= 8) {
        __stwb(reinterpret_cast<W*>(to), word);
    } else {
        *reinterpret_cast<W*>(to) = word;
    }
}

template <int N, typename T>
__device__ __forceinline__ void store_shared(T* to, const Vector<T, N>& vector) {
    using W = typename Word<sizeof(T) * N>::type;
    LMO_CHECK_ALIGNMENT(to, sizeof(W));
    LMO_CHECK_SHARED(to);
    W word;
    memcpy(&word, &vector, sizeof word);
    *reinterpret_cast<W*>(to) = word;
}

template <int N, typename T>
__device__ __forceinline__ void store_streaming(T* to, const Vector<T, N>& vector) {
    using W = typename Word<sizeof(T) * N>::type;
    LMO_CHECK_ALIGNMENT(to, sizeof(W));
    W word;
    memcpy(&word, &vector, sizeof word);
    __stcs(reinterpret_cast<W*>(to), word);
}

// ---- reductions ---------------------------------------------------------------------------------
// All lanes get the result. The order is that of a butterfly, the same in every launch.

#ifndef LMO_EMULATE_CUDA
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    }
    return value;
}
#else
// One collective in place of five: the same additions in the same order.
using emulator::warp_max;
using emulator::warp_sum;
#endif

// Sum over a block of Threads threads (a multiple of 32), for all of them. `scratch` holds
// Threads / 32 values in shared memory; it may be used again after the next barrier.
template <int Threads, typename T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
    static_assert(Threads % 32 == 0 && Threads <= 1024);
    value = warp_sum(value);
    if constexpr (Threads == 32) return value;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    T sum = scratch[0];
#pragma unroll
    for (int warp = 1; warp < Threads / 32; ++warp) sum += scratch[warp];
    return sum;
}

template <int Threads>
__device__ __forceinline__ float block_max(float value, float* scratch) {
    static_assert(Threads % 32 == 0 && Threads <= 1024);
    value = warp_max(value);
    if constexpr (Threads == 32) return value;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    float top = scratch[0];
#pragma unroll
    for (int warp = 1; warp < Threads / 32; ++warp) top = fmaxf(top, scratch[warp]);
    return top;
}

// ---- types at run time --------------------------------------------------------------------------

template <typename T>
struct Type {
    using type = T;
};

// Calls f(Type<float>()) or f(Type<bf16>()), the two types of activations and weights.
template <typename F>
void for_compute_type(DType dtype, F&& f) {
    assert(dtype == DType::f32 || dtype == DType::bf16);
    dtype == DType::bf16 ? f(Type<bf16>()) : f(Type<float>());
}

// True where all rows of `columns` elements at these addresses start at a multiple of 16 bytes.
template <typename T, typename... Pointers>
bool rows_aligned(int64_t columns, Pointers... pointers) {
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    return columns % kWidth<T> == 0 && (aligned(pointers) && ...);
}

// ---- tiles --------------------------------------------------------------------------------------

// A thread for each item of rows x columns: blocks of 256 threads, neighbours in x on neighbouring
// columns, and no division by the thread. Kernels take `across` and ask for tile_place(across).
struct Tiles {
    dim3 grid, block;
    uint32_t across;  // blocks from the first to the last column
};

inline Tiles tiles_of(int64_t rows, int64_t columns) {
    uint32_t wide = 1;
    while (wide < 32 && wide < columns) wide *= 2;
    const uint32_t tall = 256 / wide;
    const int64_t across = div_up<int64_t>(columns, wide), down = div_up<int64_t>(rows, tall);
    assert(across * down <= INT32_MAX);
    return {dim3(static_cast<uint32_t>(across * down)), dim3(wide, tall),
            static_cast<uint32_t>(across)};
}

struct TilePlace {
    int64_t row, column;  // may lie outside
};

__device__ __forceinline__ TilePlace tile_place(uint32_t across) {
    return {int64_t{blockIdx.x / across} * blockDim.y + threadIdx.y,
            int64_t{blockIdx.x % across} * blockDim.x + threadIdx.x};
}

}  // namespace lmo::cuda
