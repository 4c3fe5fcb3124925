// The table holds predictions until dev/bench/newton_schulz has measured them on a device: small
// products are bound by launches and by tiles that reach over the edge, which the library cuts
// finer; large ones by tensor cores, where half of the work wins. wgmma exists on 9.0 alone.
#include "llmc/cuda/symmetric_choice.h"

namespace lmo::cuda {

namespace {

struct Row {
    int capability_from, capability_to;  // 10 * major + minor, both included
    int64_t n_from;
    SymmetricKernel kernel;
};

// The first row that fits.
constexpr Row kTable[] = {
    {90, 90, 256, SymmetricKernel::hopper},
    {80, 1 << 20, 256, SymmetricKernel::mma},
};

// Sides of tiles: symmetric.cu cuts small matrices finer.
int64_t tile_of(SymmetricKernel kernel, int64_t n) {
    return kernel == SymmetricKernel::mma && n <= 256 ? 64 : 128;
}

}  // namespace

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

double executed_flops(SymmetricKernel kernel, int64_t n, int64_t k, int64_t batch) {
    const double sums = static_cast<double>(k) * static_cast<double>(batch) * 2.0;
    if (kernel == SymmetricKernel::blas) return static_cast<double>(n * n) * sums;
    const int64_t tile = tile_of(kernel, n), side = (n + tile - 1) / tile;
    return static_cast<double>(side * (side + 1) / 2 * tile * tile) * sums;
}

}  // namespace lmo::cuda
