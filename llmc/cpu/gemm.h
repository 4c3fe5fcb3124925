// Matrix products for the CPU backend: fp32 by oneDNN, fp64 by OpenBLAS, either one by OpenBLAS or
// by our own kernel where the others are missing (compiled in with LMO_OPENBLAS, LMO_ONEDNN).
// Row-major, with leading dimensions. Called inside a parallel region they run on the calling
// thread alone.
#pragma once

#include <string>

#include "llmc/cpu/kernels.h"

namespace lmo::cpu {

// C[m, n] = alpha * op(A) op(B) + beta * C; beta = 0 does not read C.
template <typename T>
struct Product {
    bool transpose_a, transpose_b;
    int64_t m, n, k;
    T alpha;
    const T* a;
    int64_t lda;
    const T* b;
    int64_t ldb;
    T beta;
    T* c;
    int64_t ldc;
};

class Blas {
  public:
    Blas(const Kernels& kernels, int threads);

    void gemm(const Product<float>& product) const;
    void gemm(const Product<double>& product) const;

    // C[m, m] = alpha A A^T + beta C for A [m, k], exactly symmetric; only the lower triangle of C
    // is read.
    template <typename T>
    void symmetric(int64_t m, int64_t k, T alpha, const T* a, T beta, T* c) const;
    static double symmetric_flops(int64_t m, int64_t k);  // that it executes

    // The plain kernel, whatever libraries there are.
    template <typename T>
    void plain_gemm(const Product<T>& product) const;

    std::string describe() const;

  private:
    template <typename T>
    void openblas_or_plain(const Product<T>& product) const;
    void enter() const;  // sets the number of threads that the libraries use

    const Kernels& kernels_;
    int threads_;
    bool openblas_ = false;
};

}  // namespace lmo::cpu
