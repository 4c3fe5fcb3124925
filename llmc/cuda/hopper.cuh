// The asynchronous instructions of Hopper (sm_90a alone) as functions: barriers that count bytes
// (mbarrier), tiles moved by the tensor memory accelerator (TMA), products by four warps (wgmma).
// The emulator has the same functions in dev/emulator/hopper.h. A file that includes this is
// compiled with -gencode arch=compute_90a,code=sm_90a and nothing else.
//
// Tiles in shared memory are those of tensor_map.cuh.
//
// wgmma computes D[64, N] += A[64, 16] B[16, N] for a warpgroup, four warps that start at a
// multiple of four. Thread w * 32 + l of it holds, with g = l / 4 and t = l % 4, in float
// 4 j + i of D the element of row 16 w + g + 8 (i / 2) and column 8 j + 2 t + i % 2.
//
// Order: a wait at an mbarrier makes what its arrivals published, and what TMA wrote, visible. What
// threads wrote to shared memory is seen by TMA and wgmma after fence_async. Accumulators belong to
// the hardware from wgmma until wgmma_wait; wgmma_fence goes before the first wgmma that reads
// registers written by other instructions.
// Sources: PTX ISA 8.7, "mbarrier", "cp.async.bulk.tensor", "Asynchronous warpgroup level matrix
// instructions".
#pragma once

#include "llmc/cuda/ptx.cuh"
#include "llmc/cuda/tensor_map.cuh"

#ifdef LMO_EMULATE_CUDA
#include "dev/emulator/hopper.h"
#endif

namespace lmo::cuda {

#ifdef LMO_EMULATE_CUDA

using emulator::allow_next_kernel;
using emulator::barrier_arrive;
using emulator::barrier_arrive_expect;
using emulator::barrier_init;
using emulator::barrier_invalidate;
using emulator::barrier_wait;
using emulator::decrease_registers;
using emulator::fence_async;
using emulator::fence_barrier_init;
using emulator::increase_registers;
using emulator::named_barrier_sync;
using emulator::shared_address;
using emulator::stmatrix_x4;
using emulator::stmatrix_x4_transposed;
using emulator::tma_load;
using emulator::tma_store;
using emulator::tma_store_commit;
using emulator::tma_store_wait;
using emulator::tma_store_wait_read;
using emulator::wait_for_previous_kernel;
using emulator::wgmma;
using emulator::wgmma_commit;
using emulator::wgmma_fence;
using emulator::wgmma_wait;

#else

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- mbarrier: a barrier in shared memory for threads and for bytes ----------------------------
// A phase ends when `arrivals` threads have arrived and all bytes that they announced have come.
// Phases 0, 1, 2, ... have parity 0, 1, 0, ...

// By one thread; then fence_barrier_init, and __syncthreads before others use it.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

// Makes the memory usable for something else.
__device__ __forceinline__ void barrier_invalidate(uint64_t* barrier) {
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];\n" ::"r"(shared_address(barrier))
                 : "memory");
}

__device__ __forceinline__ void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier))
                 : "memory");
}

// Arrives and announces bytes that TMA will deliver in this phase.
__device__ __forceinline__ void barrier_arrive_expect(uint64_t* barrier, int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

// Waits for the end of the phase of this parity: of the present one or of the one before.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, int parity) {
    uint32_t done;
    do {
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
            "selp.u32 %0, 1, 0, done;\n"
            "}\n"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!done);
}

// What this thread wrote to shared memory is seen by TMA and wgmma that are issued after this, by
// itself or by threads that it meets at a barrier.
__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// ---- TMA: tiles between global and shared memory -----------------------------------------------
// Issued by one thread. (column, row) of the tile's first element may be anywhere, also negative.

// Its 128 * box_rows bytes arrive at the barrier, zeros beyond the matrix included.
__device__ __forceinline__ void tma_load(void* tile, const TensorMap* map, int column, int row,
                                         uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(shared_address(tile)),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
        : "memory");
}
__device__ __forceinline__ void tma_load(void* tile, const TensorMap* map, int column, int row,
                                         int matrix, uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4}], [%5];\n" ::"r"(shared_address(tile)),
        "l"(map), "r"(column), "r"(row), "r"(matrix), "r"(shared_address(barrier))
        : "memory");
}

__device__ __forceinline__ void tma_store(const TensorMap* map, int column, int row,
                                          const void* tile) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\n" ::"l"(map),
        "r"(column), "r"(row), "r"(shared_address(tile))
        : "memory");
}
__device__ __forceinline__ void tma_store(const TensorMap* map, int column, int row, int matrix,
                                          const void* tile) {
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];\n" ::"l"(
            map),
        "r"(column), "r"(row), "r"(matrix), "r"(shared_address(tile))
        : "memory");
}

// Closes a group of this thread's stores.
__device__ __forceinline__ void tma_store_commit() {
    asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}

// Waits until at most Pending groups are still to read their tiles; before a tile is written again,
// and before the block ends.
template <int Pending>
__device__ __forceinline__ void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(Pending) : "memory");
}

// Waits until at most Pending groups are still to be written.
template <int Pending>
__device__ __forceinline__ void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;\n" ::"n"(Pending) : "memory");
}

// ---- wgmma: products by a warpgroup ------------------------------------------------------------

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

// Keeps the compiler from moving uses of accumulators across the instruction before or after.
template <int Count>
__device__ __forceinline__ void pin(float (&d)[Count]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// After other instructions wrote to d.
template <int Count>
__device__ __forceinline__ void wgmma_fence(float (&d)[Count]) {
    pin(d);
    wgmma_fence();
}

// Closes a group of products.
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Waits until at most Pending groups are under way; with d, before other instructions read it.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(Pending) : "memory");
}
template <int Pending, int Count>
__device__ __forceinline__ void wgmma_wait(float (&d)[Count]) {
    wgmma_wait<Pending>();
    pin(d);
}

namespace detail {

template <int N, typename T, bool TransposeA, bool TransposeB>
struct Wgmma;

// The N / 2 accumulators as placeholders of the assembler, %0 to %(N / 2 - 1), and as operands.
#define LMO_TEN(tens)                                                                     \
    "%" tens "0,%" tens "1,%" tens "2,%" tens "3,%" tens "4,%" tens "5,%" tens "6,%" tens \
    "7,%" tens "8,%" tens "9,"
#define LMO_FIRST_30 LMO_TEN("") LMO_TEN("1") LMO_TEN("2")
#define LMO_FIRST_60 LMO_FIRST_30 LMO_TEN("3") LMO_TEN("4") LMO_TEN("5")
#define LMO_FIRST_90 LMO_FIRST_60 LMO_TEN("6") LMO_TEN("7") LMO_TEN("8")
#define LMO_FIRST_120 LMO_FIRST_90 LMO_TEN("9") LMO_TEN("10") LMO_TEN("11")
#define LMO_NAMES_64 LMO_FIRST_30 "%30,%31"
#define LMO_NAMES_128 LMO_FIRST_60 "%60,%61,%62,%63"
#define LMO_NAMES_256 LMO_FIRST_120 "%120,%121,%122,%123,%124,%125,%126,%127"
#define LMO_FLOATS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LMO_FLOATS_16(i) \
    LMO_FLOATS_4(i), LMO_FLOATS_4(i + 4), LMO_FLOATS_4(i + 8), LMO_FLOATS_4(i + 12)
#define LMO_FLOATS_64 LMO_FLOATS_16(0), LMO_FLOATS_16(16)
#define LMO_FLOATS_128 LMO_FLOATS_64, LMO_FLOATS_16(32), LMO_FLOATS_16(48)
#define LMO_FLOATS_256 \
    LMO_FLOATS_128, LMO_FLOATS_16(64), LMO_FLOATS_16(80), LMO_FLOATS_16(96), LMO_FLOATS_16(112)

// The five operands after the accumulators: descriptors, whether to add to what d holds, and which
// operands are transposed.
#define LMO_WGMMA(n, T, ptx_type, a_name, b_name, add_name, transposes)                       \
    template <bool TransposeA, bool TransposeB>                                               \
    struct Wgmma<n, T, TransposeA, TransposeB> {                                              \
        static __device__ __forceinline__ void run(float (&d)[n / 2], uint64_t a, uint64_t b, \
                                                   int add) {                                 \
            asm volatile(                                                                     \
                "{\n"                                                                         \
                ".reg .pred add;\n"                                                           \
                "setp.ne.b32 add, " add_name                                                  \
                ", 0;\n"                                                                      \
                "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." ptx_type "." ptx_type       \
                " {" LMO_NAMES_##n "}, " a_name ", " b_name ", add, 1, 1, " transposes        \
                                   ";\n"                                                      \
                                   "}\n"                                                      \
                : LMO_FLOATS_##n                                                              \
                : "l"(a), "l"(b), "r"(add), "n"(TransposeA), "n"(TransposeB));                \
        }                                                                                     \
    }
LMO_WGMMA(64, bf16, "bf16", "%32", "%33", "%34", "%35, %36");
LMO_WGMMA(64, fp16, "f16", "%32", "%33", "%34", "%35, %36");
LMO_WGMMA(128, bf16, "bf16", "%64", "%65", "%66", "%67, %68");
LMO_WGMMA(128, fp16, "f16", "%64", "%65", "%66", "%67, %68");
LMO_WGMMA(256, bf16, "bf16", "%128", "%129", "%130", "%131, %132");
LMO_WGMMA(256, fp16, "f16", "%128", "%129", "%130", "%131, %132");
#undef LMO_WGMMA
#undef LMO_FLOATS_256
#undef LMO_FLOATS_128
#undef LMO_FLOATS_64
#undef LMO_FLOATS_16
#undef LMO_FLOATS_4
#undef LMO_NAMES_256
#undef LMO_NAMES_128
#undef LMO_NAMES_64
#undef LMO_FIRST_120
#undef LMO_FIRST_90
#undef LMO_FIRST_60
#undef LMO_FIRST_30
#undef LMO_TEN

}  // namespace detail

// Starts d = A B, or d += A B where `add`. A and B by descriptors, k_major or, with the Transpose
// flag, mn_major, the same in all threads of the warpgroup. N = 64, 128 or 256.
template <int N, typename T, bool TransposeA = false, bool TransposeB = false>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool add) {
    detail::Wgmma<N, T, TransposeA, TransposeB>::run(d, a, b, add);
}

// ---- registers, matrices, barriers of some threads, overlap of kernels -------------------------

// Sets the registers of each thread of this warpgroup: 24 to 256, a multiple of 8. The sum over the
// block's warpgroups stays within what it was launched with. Without __launch_bounds__(threads, 1)
// the compiler ignores it.
template <int Registers>
__device__ __forceinline__ void increase_registers() {
    static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0);
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void decrease_registers() {
    static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0);
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Registers));
}

// ldmatrix_x4 the other way: lane l gives the address of row l % 8 of matrix l / 8 and, in r[i],
// the elements (l / 4, 2 (l % 4) + {0, 1}) of matrix i.
__device__ __forceinline__ void stmatrix_x4(void* row, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(
                     shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
// The elements (2 (l % 4) + {0, 1}, l / 4).
__device__ __forceinline__ void stmatrix_x4_transposed(void* row, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(
                     shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

// __syncthreads for the first `threads` threads that come, whole warps. id: 1 to 15; 0 belongs to
// __syncthreads.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// For kernels launched with programmatic stream serialization, which may start before the kernel
// before them has ended: waits until that one's results are visible. Else it does nothing.
__device__ __forceinline__ void wait_for_previous_kernel() {
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
}
// The next kernel may start once all blocks have come here or have ended.
__device__ __forceinline__ void allow_next_kernel() {
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}

#endif

// ---- descriptors of wgmma's operands -----------------------------------------------------------

// For a tile in shared memory: 128-byte swizzle, groups of 8 rows 1024 bytes apart, groups of 64
// columns (where they matter) tile_bytes apart.
__device__ __forceinline__ uint64_t matrix_descriptor(const void* tile, int tile_bytes) {
    constexpr uint64_t swizzle_128_bytes = 1, eight_rows = 1024;
    return (shared_address(tile) & 0x3ffff) >> 4 | static_cast<uint64_t>(tile_bytes >> 4) << 16 |
           eight_rows >> 4 << 32 | swizzle_128_bytes << 62;
}

// K-major, the sum runs along the rows of the tile: A's 64 rows and B's N columns are rows here.
// `tile` may start at any multiple of 8 rows. The next 16 of k: add kNextK.
__device__ __forceinline__ uint64_t k_major(const void* tile) {
    return matrix_descriptor(tile, 16);
}
constexpr uint64_t kNextK = 32 >> 4;

// MN-major, for wgmma's Transpose flags: the sum runs down the columns, tiles are [k, 64], and the
// next 64 rows of A or columns of B are tile_bytes on. The next 16 of k: add kNextRows.
__device__ __forceinline__ uint64_t mn_major(const void* tile, int tile_bytes) {
    return matrix_descriptor(tile, tile_bytes);
}
constexpr uint64_t kNextRows = 16 * 128 >> 4;

}  // namespace lmo::cuda
