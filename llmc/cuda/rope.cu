// Rotary position embedding, in place on the q and k heads of qkv [B, T, (H+2K)*D]:
//   (a, b) -> (a cos - b sin, a sin + b cos)  for the pairs (i, i + D/2) of each head,
// cos and sin of t * theta^(-2i/D) from table [T, D/2, 2] (fp32). The inverse turns the other way.
//
// One thread turns 16 bytes of first halves with their second halves. Memory traffic per element of
// q and k, bf16: 2 bytes read, 2 written; the table (4 D T bytes) stays in the caches, as all heads
// of one position are neighbours. Source: Su et al. 2021, "RoFormer" (equation 34), in the
// half-split layout of GPT-NeoX and of Hugging Face's LLaMA.
#include "llmc/cuda/common.cuh"
#include "llmc/cuda/cuda_backend.h"

namespace lmo::cuda {

namespace {

// A row of tiles is the `heads` * `half` vectors of W first halves of one position.
template <typename T, int W>
__global__ void rope_kernel(T* qkv, const float* table, uint32_t rows, uint32_t positions,
                            uint32_t heads, uint32_t half, int64_t stride, float direction,
                            uint32_t across) {
    const TilePlace at = tile_place(across);
    wait_for_previous();
    if (at.row >= rows || at.column >= heads * half) return;
    const uint32_t row = static_cast<uint32_t>(at.row), column = static_cast<uint32_t>(at.column);
    const uint32_t head = column / half, vector = column % half;

    constexpr int kLoad = W == 1 ? 1 : 4;  // floats of the table that one instruction loads
    const float* turn = table + (int64_t{row % positions} * half + vector) * 2 * W;
    float turns[2 * W];
#pragma unroll
    for (int i = 0; i < 2 * W; i += kLoad) {
        const Vector<float, kLoad> part = load<kLoad>(turn + i);
#pragma unroll
        for (int j = 0; j < kLoad; ++j) turns[i + j] = part[j];
    }

    T* place = qkv + at.row * stride + (int64_t{2 * head} * half + vector) * W;
    Vector<T, W> first = load<W>(place), second = load<W>(place + half * W);
#pragma unroll
    for (int i = 0; i < W; ++i) {
        const float cosine = turns[2 * i], sine = direction * turns[2 * i + 1];
        const float a = to_float(first[i]), b = to_float(second[i]);
        first[i] = from_float<T>(a * cosine - b * sine);
        second[i] = from_float<T>(a * sine + b * cosine);
    }
    store(place, first);
    store(place + half * W, second);
}

template <typename T, int W>
void turn(const Rope& op, int64_t half, Stream stream) {
    const int64_t rows = op.qkv.shape[0] * op.qkv.shape[1];
    const int64_t heads = op.heads + op.kv_heads;
    const Tiles tiles = tiles_of(rows, heads * half / W);
    launch(LMO_KERNEL(rope_kernel<T, W>), tiles.grid, tiles.block, 0, stream, op.qkv.as<T>(),
           op.table.as<float>(), rows, op.qkv.shape[1], heads, half / W, op.qkv.shape[2],
           op.inverse ? -1.0f : 1.0f, tiles.across);
}

}  // namespace

void CudaBackend::rope(const Rope& op) {
    const int64_t positions = op.qkv.shape[1], stride = op.qkv.shape[2];
    const int64_t slots = op.heads + 2 * op.kv_heads, half = stride / slots / 2;
    assert(stride == slots * 2 * half && op.qkv.shape[0] * positions <= INT32_MAX);
    assert(op.table.shape[0] >= positions && op.table.shape[1] == half);
    assert(op.table.dtype == DType::f32);
    if (op.qkv.count() == 0) return;
    for_compute_type(op.qkv.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        if (rows_aligned<T>(half, op.qkv.data, op.table.data)) {
            turn<T, kWidth<T>>(op, half, stream_);
        } else {
            turn<T, 1>(op, half, stream_);
        }
    });
}

}  // namespace lmo::cuda
