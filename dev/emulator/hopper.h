// The functions of llmc/cuda/hopper.cuh on the emulator. What is checked beyond results is said in
// hopper.cpp, tma.cpp and wgmma.cpp.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "dev/emulator/runtime.h"

namespace emulator {

// ---- mbarrier (hopper.cpp) ---------------------------------------------------------------------

void barrier_init(uint64_t* barrier, int arrivals, LMO_SITE);
void barrier_invalidate(uint64_t* barrier, LMO_SITE);
void barrier_arrive(uint64_t* barrier, LMO_SITE);
void barrier_arrive_expect(uint64_t* barrier, int bytes, LMO_SITE);
void barrier_wait(uint64_t* barrier, int parity, LMO_SITE);
// The emulator's memory is never out of order between threads and copy engines.
inline void fence_barrier_init() {}
inline void fence_async() {}

// ---- TMA (tma.cpp) -----------------------------------------------------------------------------

struct TileCoordinates {
    int column, row, matrix;
    int rank;  // 2: there is no matrix
};
void load_tile(void* tile, const CUtensorMap* map, TileCoordinates at, uint64_t* barrier,
               Site site);
void store_tile(const CUtensorMap* map, TileCoordinates at, const void* tile, Site site);

inline void tma_load(void* tile, const CUtensorMap* map, int column, int row, uint64_t* barrier,
                     LMO_SITE) {
    load_tile(tile, map, {column, row, 0, 2}, barrier, site);
}
inline void tma_load(void* tile, const CUtensorMap* map, int column, int row, int matrix,
                     uint64_t* barrier, LMO_SITE) {
    load_tile(tile, map, {column, row, matrix, 3}, barrier, site);
}
inline void tma_store(const CUtensorMap* map, int column, int row, const void* tile, LMO_SITE) {
    store_tile(map, {column, row, 0, 2}, tile, site);
}
inline void tma_store(const CUtensorMap* map, int column, int row, int matrix, const void* tile,
                      LMO_SITE) {
    store_tile(map, {column, row, matrix, 3}, tile, site);
}
void tma_store_commit();
void wait_for_stores(int pending, Site site);
// A store reads its tile and writes global memory at the same moment, so the two waits are one.
template <int Pending>
inline void tma_store_wait_read(LMO_SITE) {
    wait_for_stores(Pending, site);
}
template <int Pending>
inline void tma_store_wait(LMO_SITE) {
    wait_for_stores(Pending, site);
}

// ---- wgmma (wgmma.cpp) -------------------------------------------------------------------------

// What every thread of a warpgroup gives to a product.
struct ProductInput {
    float* d;  // n / 2 accumulators
    uint64_t a, b;
    bool add, fp16, transpose_a, transpose_b;
    int n;
};
void start_product(const ProductInput& input, Site site);
void wgmma_fence(LMO_SITE);
// Accumulators given to it belong to the compiler's order, not to the machine's.
template <int Count>
inline void wgmma_fence(float (&)[Count], LMO_SITE) {
    wgmma_fence(site);
}
void wgmma_commit(LMO_SITE);
void wait_for_products(int pending, Site site);
void set_registers(const char* operation, int registers, Site site);
// Fails where a product that was not waited for reads some of these bytes of shared memory.
void check_no_product_reads(const void* pointer, size_t bytes, Site site);

template <int N, typename T, bool TransposeA = false, bool TransposeB = false>
inline void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool add, LMO_SITE) {
    static_assert(N == 64 || N == 128 || N == 256);
    static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
    start_product({d, a, b, add, std::is_same_v<T, __half>, TransposeA, TransposeB, N}, site);
}
template <int Pending>
inline void wgmma_wait(LMO_SITE) {
    wait_for_products(Pending, site);
}
template <int Pending, int Count>
inline void wgmma_wait(float (&)[Count], LMO_SITE) {
    wait_for_products(Pending, site);
}

template <int Registers>
inline void increase_registers(LMO_SITE) {
    static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0);
    set_registers("increase_registers", Registers, site);
}
template <int Registers>
inline void decrease_registers(LMO_SITE) {
    static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0);
    set_registers("decrease_registers", Registers, site);
}

// ---- stmatrix, named barriers (hopper.cpp), overlap of kernels ---------------------------------

void store_matrices(void* row, const uint32_t* r, bool transposed, Site site);
inline void stmatrix_x4(void* row, const uint32_t (&r)[4], LMO_SITE) {
    store_matrices(row, r, false, site);
}
inline void stmatrix_x4_transposed(void* row, const uint32_t (&r)[4], LMO_SITE) {
    store_matrices(row, r, true, site);
}

void named_barrier_sync(int id, int threads, LMO_SITE);

// Kernels on one stream never overlap here.
inline void wait_for_previous_kernel() {}
inline void allow_next_kernel() {}

}  // namespace emulator
