// Matrix products of tensors. bf16 operands are widened to fp32 in the workspace, because without
// AMX no library multiplies bf16 faster than fp32.
#include <tuple>
#include <type_traits>

#include "llmc/cpu/cpu_backend.h"

namespace lmo::cpu {

namespace {

template <typename T>
constexpr DType type_of = sizeof(T) == 8 ? DType::f64 : DType::f32;

// The fp32 twins of the operands that are bf16; null for the others.
struct Widened {
    float *a = nullptr, *b = nullptr, *c = nullptr;

    Widened(Scratch& scratch, const Tensor& ta, const Tensor& tb, const Tensor& tc) {
        if (ta.dtype == DType::bf16) a = scratch.take<float>(ta.count());
        if (tb.dtype == DType::bf16) b = scratch.take<float>(tb.count());
        if (tc.dtype == DType::bf16) c = scratch.take<float>(tc.count());
    }
};

struct Extents {
    int64_t batch, m, n, k;
};

Extents extents(const Gemm& op) {
    [[maybe_unused]] const Shape& b = op.b.shape;  // read by the checks only
    const Shape &a = op.a.shape, &c = op.c.shape;
    const int rank = c.rank();
    assert((rank == 2 || rank == 3) && a.rank() == rank && b.rank() == rank);
    const Extents e{rank == 3 ? c[0] : 1, c[rank - 2], c[rank - 1],
                    a[rank - (op.transpose_a ? 2 : 1)]};
    assert(rank == 2 || (a[0] == e.batch && b[0] == e.batch));
    assert(a[rank - (op.transpose_a ? 1 : 2)] == e.m);
    assert(b[rank - (op.transpose_b ? 2 : 1)] == e.n);
    assert(b[rank - (op.transpose_b ? 1 : 2)] == e.k);
    return e;
}

}  // namespace

size_t CpuBackend::workspace_bytes(const Gemm& op) const {
    Scratch scratch;
    Widened(scratch, op.a, op.b, op.c);
    return scratch.bytes();
}

void CpuBackend::gemm(const Gemm& op) {
    assert(op.a.dtype == op.b.dtype);
    assert(op.c.dtype == op.a.dtype || (op.a.dtype == DType::bf16 && op.c.dtype == DType::f32));
    const bool added = op.beta != 0 && !op.addend.empty() && op.addend.data != op.c.data;
    if (added) copy(op.c, op.addend);
    if (op.a.dtype == DType::f64) return gemm_in<double>(op);
    const bool empty = op.a.count() == 0 || op.b.count() == 0;
    const bool fast = op.a.dtype == DType::bf16 && !empty && bf16_matmul_.fast();
    if (fast && bf16_matmul_.run(op, threads_)) return;
    gemm_in<float>(op);
}

template <typename T>
void CpuBackend::gemm_in(const Gemm& op) {
    const Extents e = extents(op);
    Scratch scratch(op.workspace);
    const Widened wide(scratch, op.a, op.b, op.c);
    const auto operand = [&](const Tensor& tensor, float* widened) -> const T* {
        if constexpr (std::is_same_v<T, float>) {  // fp64 is never widened
            if (widened) {
                convert(DType::f32, widened, tensor.dtype, tensor.data, tensor.count());
                return widened;
            }
        }
        return tensor.as<T>();
    };
    const T* a = operand(op.a, wide.a);
    const T* b = operand(op.b, wide.b);
    T* c = wide.c ? reinterpret_cast<T*>(wide.c) : op.c.as<T>();
    if (wide.c && op.beta != 0) operand(op.c, wide.c);
    for (int64_t i = 0; i < e.batch; ++i) {
        blas_.gemm(Product<T>{
            op.transpose_a, op.transpose_b, e.m, e.n, e.k, static_cast<T>(op.alpha),
            a + i * e.m * e.k, op.transpose_a ? e.m : e.k, b + i * e.k * e.n,
            op.transpose_b ? e.k : e.n, static_cast<T>(op.beta), c + i * e.m * e.n, e.n});
    }
    if (wide.c) convert(op.c.dtype, op.c.data, DType::f32, wide.c, op.c.count());
}

size_t CpuBackend::workspace_bytes(const SymmetricProduct& op) const {
    Scratch scratch;
    if (op.a.dtype == DType::bf16) scratch.take<float>(op.a.count());
    if (op.c.dtype == DType::bf16) scratch.take<float>(op.c.count());
    return scratch.bytes();
}

void CpuBackend::symmetric_product(const SymmetricProduct& op) {
    op.a.dtype == DType::f64 ? symmetric_product_in<double>(op) : symmetric_product_in<float>(op);
}

template <typename T>
void CpuBackend::symmetric_product_in(const SymmetricProduct& op) {
    const int rank = op.c.shape.rank();
    const int64_t batch = rank == 3 ? op.c.shape[0] : 1, m = op.c.shape[rank - 1];
    const int64_t k = op.a.shape[rank - 1];
    assert(op.a.shape.rank() == rank && op.a.shape[rank - 2] == m && op.c.shape[rank - 2] == m);
    Scratch scratch(op.workspace);
    const bool widen_a = op.a.dtype == DType::bf16, widen_c = op.c.dtype == DType::bf16;
    T* a = widen_a ? scratch.take<T>(op.a.count()) : op.a.as<T>();
    T* c = widen_c ? scratch.take<T>(op.c.count()) : op.c.as<T>();
    if (widen_a) convert(type_of<T>, a, op.a.dtype, op.a.data, op.a.count());
    if (op.beta != 0) {
        assert(op.s.count() == op.c.count());
        convert(type_of<T>, c, op.s.dtype, op.s.data, op.c.count());
    }
    for (int64_t i = 0; i < batch; ++i) {
        blas_.symmetric(m, k, static_cast<T>(op.alpha), a + i * m * k, static_cast<T>(op.beta),
                        c + i * m * m);
    }
    if (widen_c) convert(op.c.dtype, op.c.data, type_of<T>, c, op.c.count());
}

}  // namespace lmo::cpu
