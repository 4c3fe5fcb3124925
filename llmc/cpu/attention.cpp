// Causal attention by tiles: a thread takes `tile_rows` query positions of one head, computes their
// scores against all earlier positions (tile_rows x T numbers, never T x T), and multiplies by
// GEMMs on views of the fused qkv tensor.
//   forward:  S = Q K^T / sqrt(D), P = softmax(S), O = P V
//   backward: P again from S and the saved log-sum-exp, dP = dO V^T, dS = P (dP - sum_j P dP),
//             dQ = dS K, dK += dS^T Q, dV += P^T dO
// bf16 tensors are widened to fp32 in the workspace. (Dao et al. 2022, without the online softmax:
// a row of scores fits into the cache.)
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "llmc/cpu/cpu_backend.h"

namespace lmo::cpu {

namespace {

constexpr int64_t tile_rows = 64;

template <typename T>
constexpr DType type_of = sizeof(T) == 8 ? DType::f64 : DType::f32;

struct Extents {
    int64_t batch, positions, heads, kv_heads, size;  // size: of a head
    int64_t stride, out_stride;                       // between positions of qkv and of out
    int64_t rows, tiles;                              // of a tile; tiles of a head

    Extents(const Tensor& qkv, int heads_, int kv_heads_)
        : batch(qkv.shape[0]),
          positions(qkv.shape[1]),
          heads(heads_),
          kv_heads(kv_heads_),
          size(qkv.shape[2] / (heads_ + 2 * kv_heads_)),
          stride(qkv.shape[2]),
          out_stride(heads * size),
          rows(std::min(tile_rows, positions)),
          tiles(block_count(positions, tile_rows)) {
        assert(heads % kv_heads == 0 && stride == (heads + 2 * kv_heads) * size);
    }
    int64_t key(int64_t kv_head) const { return (heads + kv_head) * size; }
    int64_t value(int64_t kv_head) const { return (heads + kv_heads + kv_head) * size; }
};

// Scratch memory: per thread one or two tiles of scores and a tile of output rows; for bf16 the
// widened tensors.
template <typename T>
struct Buffers {
    T *scores = nullptr, *gradients = nullptr, *out = nullptr;
    T *qkv = nullptr, *dout = nullptr, *dqkv = nullptr;

    Buffers(Scratch& scratch, const Extents& e, int threads, bool widened, bool backward) {
        const int64_t tokens = e.batch * e.positions;
        scores = scratch.take<T>(threads * e.rows * e.positions);
        if (backward) gradients = scratch.take<T>(threads * e.rows * e.positions);
        if (!widened) return;
        qkv = scratch.take<T>(tokens * e.stride);
        if (backward) {
            dout = scratch.take<T>(tokens * e.out_stride);
            dqkv = scratch.take<T>(tokens * e.stride);
        } else {
            out = scratch.take<T>(threads * e.rows * e.size);
        }
    }
};

template <typename T>
size_t buffer_bytes(const Tensor& qkv, int heads, int kv_heads, int threads, bool backward) {
    Scratch scratch;
    Buffers<T>(scratch, Extents(qkv, heads, kv_heads), threads, qkv.dtype == DType::bf16, backward);
    return scratch.bytes();
}

}  // namespace

size_t CpuBackend::workspace_bytes(const AttentionForward& op) const {
    const auto bytes = op.qkv.dtype == DType::f64 ? buffer_bytes<double> : buffer_bytes<float>;
    return bytes(op.qkv, op.heads, op.kv_heads, threads_, false);
}

size_t CpuBackend::workspace_bytes(const AttentionBackward& op) const {
    const auto bytes = op.qkv.dtype == DType::f64 ? buffer_bytes<double> : buffer_bytes<float>;
    return bytes(op.qkv, op.heads, op.kv_heads, threads_, true);
}

void CpuBackend::attention_forward(const AttentionForward& op) {
    op.qkv.dtype == DType::f64 ? attention_forward_in<double>(op) : attention_forward_in<float>(op);
}

void CpuBackend::attention_backward(const AttentionBackward& op) {
    op.qkv.dtype == DType::f64 ? attention_backward_in<double>(op)
                               : attention_backward_in<float>(op);
}

template <typename T>
void CpuBackend::attention_forward_in(const AttentionForward& op) {
    const Extents e(op.qkv, op.heads, op.kv_heads);
    const bool widened = op.qkv.dtype == DType::bf16;
    assert(!op.library);
    assert(op.out.dtype == op.qkv.dtype && op.out.count() == e.batch * e.positions * e.out_stride);
    assert(op.lse.dtype == type_of<T> && op.lse.count() == e.batch * e.heads * e.positions);
    assert(op.row_max.empty() ||
           (op.row_max.dtype == op.lse.dtype && op.row_max.count() == op.lse.count()));
    Scratch scratch(op.workspace);
    const Buffers<T> buffers(scratch, e, threads_, widened, false);
    if (widened) convert(type_of<T>, buffers.qkv, op.qkv.dtype, op.qkv.data, op.qkv.count());
    const T* qkv = widened ? buffers.qkv : op.qkv.as<T>();
    const T scale = static_cast<T>(1.0 / std::sqrt(static_cast<double>(e.size)));

    const auto run = [&](int64_t b, int64_t h, int64_t tile) {
        const int64_t first = tile * tile_rows, rows = std::min(tile_rows, e.positions - first);
        const int64_t columns = first + rows;
        const T* base = qkv + b * e.positions * e.stride;
        const int64_t kv_head = h / (e.heads / e.kv_heads);
        T* scores = buffers.scores + omp_get_thread_num() * e.rows * e.positions;
        blas_.gemm(Product<T>{false, true, rows, columns, e.size, scale,
                              base + first * e.stride + h * e.size, e.stride, base + e.key(kv_head),
                              e.stride, 0, scores, columns});
        ScoreTile tile_of_scores{rows, columns, first, scores, nullptr, nullptr, nullptr, 0};
        const int64_t at = (b * e.heads + h) * e.positions + first;
        tile_of_scores.lse = op.lse.as<T>() + at;
        if (!op.row_max.empty()) tile_of_scores.top = op.row_max.as<T>() + at;
        kernels_.softmax(type_of<T>, tile_of_scores);

        const int64_t place = (b * e.positions + first) * e.out_stride + h * e.size;
        T* out =
            widened ? buffers.out + omp_get_thread_num() * e.rows * e.size : op.out.as<T>() + place;
        blas_.gemm(Product<T>{false, false, rows, e.size, columns, 1, scores, columns,
                              base + e.value(kv_head), e.stride, 0, out,
                              widened ? e.size : e.out_stride});
        if (!widened) return;
        for (int64_t r = 0; r < rows; ++r) {
            kernels_.convert(op.out.dtype, op.out.as<uint16_t>() + place + r * e.out_stride,
                             type_of<T>, out + r * e.size, e.size);
        }
    };

    const int64_t heads = e.batch * e.heads, items = heads * e.tiles;
#pragma omp parallel for num_threads(threads_) schedule(dynamic, 1)
    for (int64_t i = 0; i < items; ++i) {  // the longest tiles first
        const int64_t tile = e.tiles - 1 - i / heads, head = i % heads;
        run(head / e.heads, head % e.heads, tile);
    }
}

template <typename T>
void CpuBackend::attention_backward_in(const AttentionBackward& op) {
    const Extents e(op.qkv, op.heads, op.kv_heads);
    const bool widened = op.qkv.dtype == DType::bf16;
    assert(!op.library);
    assert(op.dqkv.dtype == op.qkv.dtype && op.dqkv.count() == op.qkv.count());
    assert(op.dout.dtype == op.qkv.dtype && op.out.dtype == op.qkv.dtype);
    Scratch scratch(op.workspace);
    const Buffers<T> buffers(scratch, e, threads_, widened, true);
    if (widened) {
        convert(type_of<T>, buffers.qkv, op.qkv.dtype, op.qkv.data, op.qkv.count());
        convert(type_of<T>, buffers.dout, op.dout.dtype, op.dout.data, op.dout.count());
    }
    const T* qkv = widened ? buffers.qkv : op.qkv.as<T>();
    const T* dout = widened ? buffers.dout : op.dout.as<T>();
    T* dqkv = widened ? buffers.dqkv : op.dqkv.as<T>();
    const T scale = static_cast<T>(1.0 / std::sqrt(static_cast<double>(e.size)));

    const auto run = [&](int64_t b, int64_t kv_head, int64_t h, int64_t tile) {
        const int64_t first = tile * tile_rows, rows = std::min(tile_rows, e.positions - first);
        const int64_t columns = first + rows, token = b * e.positions;
        const int64_t thread = omp_get_thread_num();
        const T* base = qkv + token * e.stride;
        const T* query = base + first * e.stride + h * e.size;
        const T* key = base + e.key(kv_head);
        const int64_t place = (token + first) * e.out_stride + h * e.size;
        T* dbase = dqkv + token * e.stride;
        ScoreTile t{rows, columns, first, nullptr, nullptr, nullptr, nullptr, scale};
        T* scores = buffers.scores + thread * e.rows * e.positions;
        T* gradients = buffers.gradients + thread * e.rows * e.positions;
        t.scores = scores;
        t.gradients = gradients;
        t.lse = op.lse.as<T>() + (b * e.heads + h) * e.positions + first;

        blas_.gemm(Product<T>{false, true, rows, columns, e.size, scale, query, e.stride, key,
                              e.stride, 0, scores, columns});
        blas_.gemm(Product<T>{false, true, rows, columns, e.size, 1, dout + place, e.out_stride,
                              base + e.value(kv_head), e.stride, 0, gradients, columns});
        kernels_.softmax_backward(type_of<T>, t);
        blas_.gemm(Product<T>{true, false, columns, e.size, rows, 1, scores, columns, dout + place,
                              e.out_stride, 1, dbase + e.value(kv_head), e.stride});
        blas_.gemm(Product<T>{true, false, columns, e.size, rows, 1, gradients, columns, query,
                              e.stride, 1, dbase + e.key(kv_head), e.stride});
        blas_.gemm(Product<T>{false, false, rows, e.size, columns, 1, gradients, columns, key,
                              e.stride, 0, dbase + first * e.stride + h * e.size, e.stride});
    };

    // One thread has a key/value head, so its sums have one order: heads of the group, then tiles.
    parallel_blocks(threads_, e.batch * e.positions, 64, [&](int64_t begin, int64_t end) {
        std::fill(dqkv + begin * e.stride, dqkv + end * e.stride, T(0));
    });
    const int64_t group = e.heads / e.kv_heads, items = e.batch * e.kv_heads;
#pragma omp parallel for num_threads(threads_) schedule(dynamic, 1)
    for (int64_t i = 0; i < items; ++i) {
        const int64_t b = i / e.kv_heads, kv_head = i % e.kv_heads;
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
            for (int64_t tile = 0; tile < e.tiles; ++tile) run(b, kv_head, h, tile);
        }
    }
    if (widened) convert(op.dqkv.dtype, op.dqkv.data, type_of<T>, dqkv, op.dqkv.count());
}

}  // namespace lmo::cpu
