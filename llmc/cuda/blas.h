// Matrix products by cuBLASLt: one plan (descriptors and algorithm) for each kind of product, made
// when it is first seen and kept.
//
// Algorithms come from the library's heuristic, a function of shape, alignment, device and library
// version, and never from timing. A long sum may be split among blocks only where the partial sums
// are kept in fp32 and added by a step of their own, in a fixed order. So equal calls give equal
// bits.
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <memory>
#include <string>

#include "llmc/core/dtype.h"

namespace lmo::cuda {

// Row-major, for each matrix of the batch: D = alpha * op(A) op(B) + beta * C, op(X) = X or its
// transpose. D [m, n], sum over k. Leading dimensions are the elements from one row to the next,
// strides those from one matrix to the next. A and B have type `type`; C and D type_out, which is
// `type` or f32. C may be D, is not read where beta is 0, and may be null then. f32 is multiplied
// in full precision, without TF32; 16-bit types are accumulated in fp32.
struct Product {
    DType type = DType::f32, type_out = DType::f32;
    int64_t m = 0, n = 0, k = 0, batch = 1;
    const void* a = nullptr;
    const void* b = nullptr;
    const void* c = nullptr;
    void* d = nullptr;
    int64_t lda = 0, ldb = 0, ldc = 0, ldd = 0;
    int64_t stride_a = 0, stride_b = 0, stride_c = 0, stride_d = 0;
    bool transpose_a = false, transpose_b = false;
    float alpha = 1.0f, beta = 0.0f;
};

class Blas {
  public:
    Blas();  // Error where the library refuses the device
    ~Blas();
    Blas(const Blas&) = delete;
    Blas& operator=(const Blas&) = delete;

    // The scratch memory that run takes for a product of this size; 256-byte aligned.
    static size_t workspace_bytes(int64_t m, int64_t n, int64_t batch);

    // m, n, k, batch > 0. Throws Error naming the product where the library has no algorithm.
    void run(const Product& product, void* workspace, cudaStream_t stream);

    static std::string version();  // "cuBLASLt 13.1.0"

  private:
    struct Plans;
    std::unique_ptr<Plans> plans_;
};

}  // namespace lmo::cuda
