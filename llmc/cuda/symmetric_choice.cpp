// The table holds predictions until dev/bench/newton_schulz has measured them on a device: small
// products are bound by launches and by tiles that reach over the edge, which the library cuts
// finer; large ones by tensor cores, where half of the work wins. wgmma exists on 9.0 alone.
#include "llmc/cuda/symmetric_choice.h"

#include <cassert>

namespace lmo::cuda {

namespace {

struct Row {
    int capability_from, capability_to;  // 10 * major + minor, both included
    int64_t n_from;
    SymmetricKernel kernel;
};

// The first row that fits.
constexpr Row kTable[] = {
    {90, 90, 2048, SymmetricKernel::wide},
    {90, 90, 256, SymmetricKernel::narrow},
    {80, 1 << 20, 256, SymmetricKernel::mma},
};

// Elements of D that a kernel computes, in tiles on and below the diagonal.
int64_t computed(SymmetricKernel kernel, int64_t n) {
    if (kernel == SymmetricKernel::blas) return n * n;
    const int64_t rows = symmetric_tile(kernel, n);
    const int64_t columns = kernel == SymmetricKernel::wide ? 256 : rows;
    int64_t elements = 0;
    for (int64_t row = 0; row < n; row += rows) elements += (row / columns + 1) * columns * rows;
    return elements;
}

}  // namespace

int64_t symmetric_tile(SymmetricKernel kernel, int64_t n) {
    return kernel == SymmetricKernel::mma && n <= 256 ? 64 : 128;
}

SymmetricKernel choose_symmetric_kernel(int capability, DType type, int64_t n) {
    if (type != DType::f16 && type != DType::bf16) return SymmetricKernel::blas;
    for (const Row& row : kTable) {
        if (capability >= row.capability_from && capability <= row.capability_to &&
            n >= row.n_from) {
            return row.kernel;
        }
    }
    return SymmetricKernel::blas;
}

void symmetric_gemm(SymmetricKernel kernel, const SymmetricGemm& op, Stream stream) {
    switch (kernel) {
        case SymmetricKernel::blas:
            break;
        case SymmetricKernel::mma:
            return symmetric_gemm_mma(op, stream);
        case SymmetricKernel::narrow:
            return symmetric_gemm_narrow(op, stream);
        case SymmetricKernel::wide:
            return symmetric_gemm_wide(op, stream);
    }
    assert(false && "no kernel of ours");
}

double executed_flops(SymmetricKernel kernel, int64_t n, int64_t k, int64_t batch) {
    return 2.0 * static_cast<double>(computed(kernel, n)) * static_cast<double>(k * batch);
}

}  // namespace lmo::cuda
