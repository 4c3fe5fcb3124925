// See gemm.h.
#include "llmc/cpu/gemm.h"

#include <omp.h>

#include <algorithm>
#include <limits>
#include <sstream>
#include <type_traits>

#include "llmc/core/error.h"

#ifdef LMO_OPENBLAS
#include <cblas.h>
#endif
#ifdef LMO_ONEDNN
#include <oneapi/dnnl/dnnl.h>
#endif

namespace lmo::cpu {

// Both libraries ask OpenMP how many threads the calling thread may start.
void Blas::enter() const {
    if (!omp_in_parallel()) omp_set_num_threads(threads_);
}

template <typename T>
void Blas::plain_gemm(const Product<T>& p) const {
    const auto kernel = std::is_same_v<T, float> ? kernels_.gemm_tile_f32 : kernels_.gemm_tile_f64;
    const int64_t across = (p.n + gemm_tile_columns - 1) / gemm_tile_columns;
    const int64_t down = (p.m + gemm_tile_rows - 1) / gemm_tile_rows;
#pragma omp parallel for num_threads(omp_in_parallel() ? 1 : threads_) schedule(static)
    for (int64_t t = 0; t < across * down; ++t) {
        const int64_t i = t / across * gemm_tile_rows, j = t % across * gemm_tile_columns;
        kernel({p.transpose_a, p.transpose_b, std::min(gemm_tile_rows, p.m - i),
                std::min(gemm_tile_columns, p.n - j), p.k, static_cast<double>(p.alpha),
                static_cast<double>(p.beta), p.a + (p.transpose_a ? i : i * p.lda),
                p.b + (p.transpose_b ? j * p.ldb : j), p.c + i * p.ldc + j, p.lda, p.ldb, p.ldc});
    }
}
template void Blas::plain_gemm(const Product<float>&) const;
template void Blas::plain_gemm(const Product<double>&) const;

#ifdef LMO_OPENBLAS
namespace {

// OpenBLAS does not know processors that are newer than itself and takes them for the oldest of
// their kind; our own kernel is then several times faster.
bool openblas_knows_this_cpu(const Kernels& kernels) {
    const std::string core = openblas_get_corename();
    const bool old = core == "Prescott" || core == "Core2" || core == "Nehalem" ||
                     core == "Sandybridge" || core == "Barcelona";
    return !old || std::string(kernels.isa) == "baseline";
}

int narrow(int64_t extent) {
    if (extent > std::numeric_limits<int>::max()) {
        throw Error("a matrix with " + std::to_string(extent) +
                    " rows or columns is too large for OpenBLAS; make the batch smaller");
    }
    return static_cast<int>(extent);
}

CBLAS_TRANSPOSE transposed(bool yes) { return yes ? CblasTrans : CblasNoTrans; }

[[maybe_unused]] void openblas_gemm(const Product<float>& p) {
    cblas_sgemm(CblasRowMajor, transposed(p.transpose_a), transposed(p.transpose_b), narrow(p.m),
                narrow(p.n), narrow(p.k), p.alpha, p.a, narrow(p.lda), p.b, narrow(p.ldb), p.beta,
                p.c, narrow(p.ldc));
}

void openblas_gemm(const Product<double>& p) {
    cblas_dgemm(CblasRowMajor, transposed(p.transpose_a), transposed(p.transpose_b), narrow(p.m),
                narrow(p.n), narrow(p.k), p.alpha, p.a, narrow(p.lda), p.b, narrow(p.ldb), p.beta,
                p.c, narrow(p.ldc));
}

}  // namespace
#endif

Blas::Blas(const Kernels& kernels, int threads) : kernels_(kernels), threads_(threads) {
#ifdef LMO_OPENBLAS
    openblas_ = openblas_knows_this_cpu(kernels);
#endif
}

// The libraries refuse these, because leading dimensions are 0.
template <typename T>
static bool empty(const Product<T>& p) {
    return p.m == 0 || p.n == 0 || p.k == 0;
}

void Blas::gemm(const Product<float>& p) const {
    if (empty(p)) return plain_gemm(p);
#ifdef LMO_ONEDNN
    enter();
    const dnnl_status_t status =
        dnnl_sgemm(p.transpose_a ? 'T' : 'N', p.transpose_b ? 'T' : 'N', p.m, p.n, p.k, p.alpha,
                   p.a, p.lda, p.b, p.ldb, p.beta, p.c, p.ldc);
    if (status != dnnl_success) {
        throw Error(
            "oneDNN's matrix product failed with status " + std::to_string(status) +
            (status == dnnl_out_of_memory ? " (out of memory): make the batch smaller" : ""));
    }
#else
    openblas_or_plain(p);
#endif
}

void Blas::gemm(const Product<double>& p) const { empty(p) ? plain_gemm(p) : openblas_or_plain(p); }

template <typename T>
void Blas::openblas_or_plain(const Product<T>& p) const {
#ifdef LMO_OPENBLAS
    if (openblas_) {
        enter();
        return openblas_gemm(p);
    }
#endif
    plain_gemm(p);
}

// The lower triangle of a symmetric product by blocks of so many rows, each up to the end of its
// diagonal block: half of the work and a bit, and not slower than OpenBLAS's syrk.
static constexpr int64_t kSymmetricBlock = 128;

double Blas::symmetric_flops(int64_t m, int64_t k) {
    double flops = 0.0;
    for (int64_t i = 0; i < m; i += kSymmetricBlock) {
        const int64_t rows = std::min(kSymmetricBlock, m - i);
        flops += 2.0 * static_cast<double>(rows * k) * static_cast<double>(i + rows);
    }
    return flops;
}

template <typename T>
void Blas::symmetric(int64_t m, int64_t k, T alpha, const T* a, T beta, T* c) const {
    for (int64_t i = 0; i < m; i += kSymmetricBlock) {
        const int64_t rows = std::min(kSymmetricBlock, m - i);
        gemm(Product<T>{false, true, rows, i + rows, k, alpha, a + i * k, k, a, k, beta, c + i * m,
                        m});
    }
    const int64_t tile = 64;  // mirrored by tiles, so that both sides stay in the cache
    const int64_t tiles = (m + tile - 1) / tile;
#pragma omp parallel for num_threads(omp_in_parallel() ? 1 : threads_) schedule(static, 1)
    for (int64_t row = 0; row < tiles; ++row) {
        for (int64_t column = 0; column <= row; ++column) {
            for (int64_t i = row * tile; i < std::min(m, (row + 1) * tile); ++i) {
                for (int64_t j = column * tile; j < std::min(i, (column + 1) * tile); ++j) {
                    c[j * m + i] = c[i * m + j];
                }
            }
        }
    }
}
template void Blas::symmetric(int64_t, int64_t, float, const float*, float, float*) const;
template void Blas::symmetric(int64_t, int64_t, double, const double*, double, double*) const;

std::string Blas::describe() const {
    std::string fp64 = "our own kernel";
#ifdef LMO_OPENBLAS
    std::string version;  // the second word of "OpenBLAS 0.3.21 DYNAMIC_ARCH ..."
    std::istringstream(openblas_get_config()) >> version >> version;
    const std::string library = "OpenBLAS " + version, core = openblas_get_corename();
    fp64 = openblas_ ? library + " (" + core + ")"
                     : fp64 + " (" + library + " takes this processor for a " + core + ")";
#endif
#ifdef LMO_ONEDNN
    const dnnl_version_t* v = dnnl_version();
    const std::string fp32 = "oneDNN " + std::to_string(v->major) + "." + std::to_string(v->minor) +
                             "." + std::to_string(v->patch);
#else
    const std::string& fp32 = fp64;
#endif
    return fp32 == fp64 ? "GEMM by " + fp32 : "GEMM by " + fp32 + ", in fp64 by " + fp64;
}

}  // namespace lmo::cpu
