// Matrix instructions of a warp: mma.m16n8k16 and ldmatrix. Fragments as llmc/cuda/ptx.cuh says.
#include <cmath>
#include <cstring>

#include "dev/emulator/memory.h"
#include "dev/emulator/ptx.h"

namespace emulator {

namespace {

// One row of the result; g++ makes two SSE registers or one of AVX of it.
typedef float Row __attribute__((vector_size(32)));

float bf16_value(uint32_t bits) { return __builtin_bit_cast(float, bits << 16); }
float fp16_value(uint32_t bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

struct Operands {
    float a[16][16];
    Row b[16];
    Row d[16];
};

// Without fused multiply-add, so that all processors give the same bits.
__attribute__((target_clones("avx2", "default"))) void multiply(Operands& o) {
    for (int row = 0; row < 16; ++row) {
        Row sum = o.d[row];
        for (int k = 0; k < 16; ++k) sum += o.a[row][k] * o.b[k];
        o.d[row] = sum;
    }
}

template <float (*Value)(uint32_t)>
void mma_lanes(Warp& warp) {
    Operands o;
    for (int lane = 0; lane < 32; ++lane) {
        const MmaInput& in = lane_in<MmaInput>(warp, lane);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) {
            float* pair = &o.a[g + 8 * (i % 2)][2 * t + 8 * (i / 2)];
            pair[0] = Value(in.a[i] & 0xffff);
            pair[1] = Value(in.a[i] >> 16);
            o.d[g + 8 * (i / 2)][2 * t + i % 2] = in.c[i];
        }
        for (int i = 0; i < 2; ++i) {
            o.b[2 * t + 8 * i][g] = Value(in.b[i] & 0xffff);
            o.b[2 * t + 8 * i + 1][g] = Value(in.b[i] >> 16);
        }
    }
    multiply(o);
    for (int lane = 0; lane < 32; ++lane) {
        float* out = &lane_out<float>(warp, lane);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) out[i] = o.d[g + 8 * (i / 2)][2 * t + i % 2];
    }
}

}  // namespace

void mma_bf16_lanes(Warp& warp, uint32_t, const void*) { mma_lanes<bf16_value>(warp); }
void mma_fp16_lanes(Warp& warp, uint32_t, const void*) { mma_lanes<fp16_value>(warp); }

void ldmatrix_lanes(Warp& warp, uint32_t, const void* transposed) {
    uint16_t matrices[4][8][8];
    for (int lane = 0; lane < 32; ++lane) {
        Thread& thread = *warp.lanes[lane];
        const void* row = thread.in;
        if (reinterpret_cast<uintptr_t>(row) % 16) {
            fail("ldmatrix at %s: the row address of lane %d is misaligned", text(thread.site),
                 lane);
        }
        if (!in_arena(row)) {
            fail("ldmatrix at %s: the row address of lane %d is out of bounds of shared memory",
                 text(thread.site), lane);
        }
        check_access(thread, row, 16, Access::read, thread.site);
        memcpy(matrices[lane / 8][lane % 8], row, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
        uint32_t* out = &lane_out<uint32_t>(warp, lane);
        const int a = lane / 4, b = lane % 4 * 2;
        for (int i = 0; i < 4; ++i) {
            const auto& m = matrices[i];
            const uint32_t low = transposed ? m[b][a] : m[a][b];
            const uint32_t high = transposed ? m[b + 1][a] : m[a][b + 1];
            out[i] = low | high << 16;
        }
    }
}

float fast_exp2(float x) {
    constexpr float smallest = 0x1p-126f;
    if (std::fabs(x) < smallest) x = 0.0f;
    const float y = std::exp2(x);
    return y < smallest ? 0.0f : y;
}

}  // namespace emulator
