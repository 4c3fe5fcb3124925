// The functions of llmc/cuda/ptx.cuh on the emulator.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "dev/emulator/runtime.h"

namespace emulator {

// One lane's operands of a matrix product.
struct MmaInput {
    const uint32_t* a;
    uint32_t b[2];
    const float* c;
};

void mma_bf16_lanes(Warp& warp, uint32_t mask, const void*);
void mma_fp16_lanes(Warp& warp, uint32_t mask, const void*);
void ldmatrix_lanes(Warp& warp, uint32_t mask, const void* transposed);

template <typename T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         LMO_SITE) {
    static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
    constexpr bool bf16 = std::is_same_v<T, __nv_bfloat16>;
    const MmaInput in{a, {b0, b1}, d};
    warp_collective("mma", 0xffffffffu, &in, d, bf16 ? mma_bf16_lanes : mma_fp16_lanes, nullptr,
                    site);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, LMO_SITE) {
    warp_collective("ldmatrix", 0xffffffffu, row, r, ldmatrix_lanes, nullptr, site);
}
inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row, LMO_SITE) {
    static const bool transposed = true;
    warp_collective("ldmatrix", 0xffffffffu, row, r, ldmatrix_lanes, &transposed, site);
}

void cp_async_16(void* shared, const void* global, int bytes = 16, LMO_SITE);
void cp_async_commit();
void wait_for_copies(int pending);
template <int Pending>
inline void cp_async_wait() {
    wait_for_copies(Pending);
}

// As ex2.approx.ftz: denormal arguments count as zero, denormal results become zero.
float fast_exp2(float x);

}  // namespace emulator
