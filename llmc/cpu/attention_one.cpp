// Attention of the last position alone: a thread takes a key/value head and the query heads that
// share it, [H/K, D] side by side, which makes two products of that many rows with the keys and the
// values where they lie. bf16 is widened to fp32 head by head. Every k and v is read once.
#include <cmath>

#include "llmc/cpu/cpu_backend.h"

namespace lmo::cpu {

namespace {

template <typename T>
constexpr DType type_of = sizeof(T) == 8 ? DType::f64 : DType::f32;

struct Extents {
    int64_t positions, heads, kv_heads, stride, size, group;

    explicit Extents(const AttentionOne& op)
        : positions(op.qkv.shape[1]),
          heads(op.heads),
          kv_heads(op.kv_heads),
          stride(op.qkv.shape[2]),
          size(stride / (heads + 2 * kv_heads)),
          group(heads / kv_heads) {
        assert(op.qkv.shape[0] == 1 && positions > 0 && heads % kv_heads == 0);
        assert(stride == (heads + 2 * kv_heads) * size);
    }
};

// Scores of all heads and a place for their log-sum-exp, which nobody reads; for bf16 each key
// head's queries and results, and its keys, which its values replace.
template <typename T>
struct Buffers {
    T *scores, *lse;
    T *queries = nullptr, *results = nullptr, *rows = nullptr;

    Buffers(Scratch& scratch, const Extents& e, bool widened)
        : scores(scratch.take<T>(e.heads * e.positions)), lse(scratch.take<T>(e.heads)) {
        if (!widened) return;
        queries = scratch.take<T>(e.heads * e.size);
        results = scratch.take<T>(e.heads * e.size);
        rows = scratch.take<T>(e.kv_heads * e.positions * e.size);
    }
};

template <typename T>
size_t buffer_bytes(const AttentionOne& op) {
    Scratch scratch;
    Buffers<T>(scratch, Extents(op), op.qkv.dtype == DType::bf16);
    return scratch.bytes();
}

}  // namespace

size_t CpuBackend::workspace_bytes(const AttentionOne& op) const {
    return op.qkv.dtype == DType::f64 ? buffer_bytes<double>(op) : buffer_bytes<float>(op);
}

void CpuBackend::attention_one(const AttentionOne& op) {
    op.qkv.dtype == DType::f64 ? attention_one_in<double>(op) : attention_one_in<float>(op);
}

template <typename T>
void CpuBackend::attention_one_in(const AttentionOne& op) {
    const Extents e(op);
    const DType type = op.qkv.dtype;
    const bool widened = type == DType::bf16;
    assert(op.out.dtype == type && op.out.count() == e.heads * e.size);
    Scratch scratch(op.workspace);
    const Buffers<T> buffers(scratch, e, widened);
    const T scale = static_cast<T>(1.0 / std::sqrt(static_cast<double>(e.size)));

    // The keys or the values of a head, as T; `slot` counts heads within a row of qkv.
    struct Rows {
        const T* data;
        int64_t stride;
    };
    const auto rows_of = [&](int64_t kv_head, int64_t slot) -> Rows {
        if (!widened) return {op.qkv.as<T>() + slot * e.size, e.stride};
        T* to = buffers.rows + kv_head * e.positions * e.size;
        for (int64_t t = 0; t < e.positions; ++t) {
            kernels_.convert(type_of<T>, to + t * e.size, type,
                             op.qkv.as<uint16_t>() + t * e.stride + slot * e.size, e.size);
        }
        return {to, e.size};
    };

#pragma omp parallel for num_threads(threads_) schedule(static, 1)
    for (int64_t kv_head = 0; kv_head < e.kv_heads; ++kv_head) {
        const int64_t head = kv_head * e.group, count = e.group * e.size;
        const int64_t last = (e.positions - 1) * e.stride + head * e.size;
        const T* queries = buffers.queries + head * e.size;
        if (widened) {
            kernels_.convert(type_of<T>, buffers.queries + head * e.size, type,
                             op.qkv.as<uint16_t>() + last, count);
        } else {
            queries = op.qkv.as<T>() + last;
        }
        T* scores = buffers.scores + head * e.positions;
        const Rows keys = rows_of(kv_head, e.heads + kv_head);
        blas_.gemm(Product<T>{false, true, e.group, e.positions, e.size, scale, queries, e.size,
                              keys.data, keys.stride, 0, scores, e.positions});
        for (int64_t h = 0; h < e.group; ++h) {
            kernels_.softmax(type_of<T>, {1, e.positions, e.positions - 1, scores + h * e.positions,
                                          buffers.lse + head + h, nullptr, nullptr, 0});
        }
        T* out = widened ? buffers.results + head * e.size : op.out.as<T>() + head * e.size;
        const Rows values = rows_of(kv_head, e.heads + e.kv_heads + kv_head);
        blas_.gemm(Product<T>{false, false, e.group, e.size, e.positions, 1, scores, e.positions,
                              values.data, values.stride, 0, out, e.size});
        if (!widened) continue;
        kernels_.convert(type, op.out.as<uint16_t>() + head * e.size, type_of<T>, out, count);
    }
}

}  // namespace lmo::cpu
