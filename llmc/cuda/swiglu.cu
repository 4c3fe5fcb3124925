// SwiGLU: out = silu(gate) * up, silu(g) = g s, s = sigmoid(g) = 1 / (1 + exp(-g)).
//
// gate_up [N, 2F] = gate and up side by side, out [N, F]. Gradient, with d = dout:
//   dup = d g s,   dgate = d up s (1 + g (1 - s)).
// One thread does 16 bytes of one row; storage is fp32 or bf16, arithmetic fp32. Memory traffic per
// element of out, bf16: forward 4 bytes read, 2 written; backward 6 read, 4 written.
// Source: Shazeer 2020, "GLU variants improve transformer" (equation 5).
#include "llmc/cuda/common.cuh"
#include "llmc/cuda/cuda_backend.h"

namespace lmo::cuda {

namespace {

// 0 where exp(-x) overflows, NaN for NaN. Exact functions for fp32; for bf16, whose rounding is
// coarser by far, the fast ones.
template <typename T>
__device__ __forceinline__ float sigmoid(float x) {
    if constexpr (std::is_same_v<T, float>) {
        return 1.0f / (1.0f + expf(-x));
    } else {
        return __fdividef(1.0f, 1.0f + __expf(-x));
    }
}

// `width` counts vectors of W in a row of out.
template <typename T, int W>
__global__ void swiglu_forward_kernel(const T* gate_up, T* out, int64_t rows, int64_t width,
                                      uint32_t across) {
    const TilePlace at = tile_place(across);
    wait_for_previous();
    if (at.row >= rows || at.column >= width) return;
    const T* from = gate_up + (at.row * 2 * width + at.column) * W;
    const Vector<T, W> gate = load<W>(from), up = load<W>(from + width * W);
    Vector<T, W> result;
#pragma unroll
    for (int i = 0; i < W; ++i) {
        const float g = to_float(gate[i]);
        result[i] = from_float<T>(g * sigmoid<T>(g) * to_float(up[i]));
    }
    store(out + (at.row * width + at.column) * W, result);
}

// dgate_up may be gate_up: a thread has read its elements before it writes them.
template <typename T, int W>
__global__ void swiglu_backward_kernel(const T* gate_up, const T* dout, T* dgate_up, int64_t rows,
                                       int64_t width, uint32_t across) {
    const TilePlace at = tile_place(across);
    wait_for_previous();
    if (at.row >= rows || at.column >= width) return;
    const int64_t place = (at.row * 2 * width + at.column) * W;
    const Vector<T, W> gate = load<W>(gate_up + place), up = load<W>(gate_up + place + width * W);
    const Vector<T, W> gradient = load<W>(dout + (at.row * width + at.column) * W);
    Vector<T, W> dgate, dup;
#pragma unroll
    for (int i = 0; i < W; ++i) {
        const float g = to_float(gate[i]), u = to_float(up[i]), d = to_float(gradient[i]);
        const float s = sigmoid<T>(g);
        dgate[i] = from_float<T>(d * u * s * (1.0f + g * (1.0f - s)));
        dup[i] = from_float<T>(d * g * s);
    }
    store(dgate_up + place, dgate);
    store(dgate_up + place + width * W, dup);
}

int64_t width_of(const Tensor& gate_up) { return gate_up.shape[gate_up.shape.rank() - 1] / 2; }

template <typename T, int W>
void forward(const SwigluForward& op, Stream stream) {
    const int64_t width = width_of(op.gate_up) / W, rows = op.out.count() / (width * W);
    const Tiles tiles = tiles_of(rows, width);
    launch(LMO_KERNEL(swiglu_forward_kernel<T, W>), tiles.grid, tiles.block, 0, stream,
           op.gate_up.as<T>(), op.out.as<T>(), rows, width, tiles.across);
}

template <typename T, int W>
void backward(const SwigluBackward& op, Stream stream) {
    const int64_t width = width_of(op.gate_up) / W, rows = op.dout.count() / (width * W);
    const Tiles tiles = tiles_of(rows, width);
    launch(LMO_KERNEL(swiglu_backward_kernel<T, W>), tiles.grid, tiles.block, 0, stream,
           op.gate_up.as<T>(), op.dout.as<T>(), op.dgate_up.as<T>(), rows, width, tiles.across);
}

}  // namespace

void CudaBackend::swiglu_forward(const SwigluForward& op) {
    assert(op.gate_up.count() == 2 * op.out.count() && op.out.dtype == op.gate_up.dtype);
    for_compute_type(op.out.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        if (rows_aligned<T>(width_of(op.gate_up), op.gate_up.data, op.out.data)) {
            forward<T, kWidth<T>>(op, stream_);
        } else {
            forward<T, 1>(op, stream_);
        }
    });
}

void CudaBackend::swiglu_backward(const SwigluBackward& op) {
    assert(op.gate_up.count() == 2 * op.dout.count() && op.dout.dtype == op.gate_up.dtype);
    assert(op.dgate_up.count() == op.gate_up.count() && op.dgate_up.dtype == op.gate_up.dtype);
    for_compute_type(op.dout.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        if (rows_aligned<T>(width_of(op.gate_up), op.gate_up.data, op.dout.data,
                            op.dgate_up.data)) {
            backward<T, kWidth<T>>(op, stream_);
        } else {
            backward<T, 1>(op, stream_);
        }
    });
}

}  // namespace lmo::cuda
