// What the tests of cublasLt's stand-in share: operands in device memory, calls, the reference.
#pragma once

#include <cublasLt.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "llmc/cuda/common.cuh"

namespace lmo::cuda {

// One operand: a batch of matrices somewhere in device memory of its own, with room between lines.
struct Operand {
    cudaDataType_t type = CUDA_R_32F;
    int64_t rows = 0, columns = 0, batch = 1;
    bool row_major = false;
    int64_t leading = 0, stride = 0;
    int64_t offset = 0;  // elements before it

    int64_t element_bytes() const { return type == CUDA_R_32F ? 4 : 2; }
    int64_t index(int64_t z, int64_t i, int64_t j) const {
        return offset + z * stride + (row_major ? i * leading + j : j * leading + i);
    }
    int64_t count() const { return index(batch - 1, rows - 1, columns - 1) + 1; }
};

inline Operand operand(cudaDataType_t type, int64_t rows, int64_t columns, bool row_major = false,
                       int64_t batch = 1) {
    Operand o{type, rows, columns, batch, row_major};
    o.leading = (row_major ? columns : rows) + 8;
    o.stride = o.leading * (row_major ? rows : columns) + 16;
    return o;
}

inline double read_value(const void* data, cudaDataType_t type, int64_t i) {
    if (type == CUDA_R_32F) return static_cast<const float*>(data)[i];
    if (type == CUDA_R_16F) return to_float(static_cast<const fp16*>(data)[i]);
    return to_float(static_cast<const bf16*>(data)[i]);
}
inline void write_value(void* data, cudaDataType_t type, int64_t i, float value) {
    if (type == CUDA_R_32F)
        static_cast<float*>(data)[i] = value;
    else if (type == CUDA_R_16F)
        static_cast<fp16*>(data)[i] = from_float<fp16>(value);
    else
        static_cast<bf16*>(data)[i] = from_float<bf16>(value);
}

// Device memory with its values on the host. Elements that belong to no matrix hold 77.
class Memory {
  public:
    explicit Memory(const Operand& shape, uint32_t seed)
        : shape_(shape), host_(static_cast<size_t>(shape.count() * shape.element_bytes())) {
        for (int64_t i = 0; i < shape.count(); ++i) write_value(host_.data(), shape.type, i, 77);
        for_all([&](int64_t at) {
            seed = seed * 1664525 + 1013904223;
            write_value(host_.data(), shape.type, at, (seed >> 8) / 8388608.0f - 1.0f);
        });
        check(cudaMalloc(&device_, host_.size()), "allocating");
        copy(device_, host_.data(), cudaMemcpyHostToDevice);
    }
    ~Memory() { cudaFree(device_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    const Operand& shape() const { return shape_; }
    // Where the first matrix starts.
    void* data() const {
        return static_cast<char*>(device_) + shape_.offset * shape_.element_bytes();
    }
    double at(int64_t z, int64_t i, int64_t j) const {
        return read_value(host_.data(), shape_.type, shape_.index(z, i, j));
    }
    void fetch() { copy(host_.data(), device_, cudaMemcpyDeviceToHost); }
    const std::vector<char>& bytes() const { return host_; }
    // How many elements outside of the matrices have changed.
    int spoiled() const {
        std::vector<bool> inside(shape_.count());
        for_all([&](int64_t at) { inside[at] = true; });
        int count = 0;
        for (int64_t i = 0; i < shape_.count(); ++i) {
            if (!inside[i] && read_value(host_.data(), shape_.type, i) != 77) ++count;
        }
        return count;
    }

  private:
    void for_all(const std::function<void(int64_t)>& f) const {
        for (int64_t z = 0; z < shape_.batch; ++z) {
            for (int64_t i = 0; i < shape_.rows; ++i) {
                for (int64_t j = 0; j < shape_.columns; ++j) f(shape_.index(z, i, j));
            }
        }
    }
    void copy(void* to, const void* from, cudaMemcpyKind kind) {
        check(cudaMemcpy(to, from, host_.size(), kind), "copying");
    }

    Operand shape_;
    std::vector<char> host_;
    void* device_ = nullptr;
};

// A call of the library, whole or with one thing changed.
struct Call {
    cublasLtHandle_t library = nullptr;
    cublasLtMatmulDesc_t description = nullptr;
    cublasLtMatrixLayout_t layouts[4] = {};  // A, B, C, D
    cublasLtMatmulPreference_t preference = nullptr;
    cublasLtMatmulHeuristicResult_t results[8];
    int found = 0;

    Call(const Operand& a, const Operand& b, const Operand& c, const Operand& d,
         bool transpose_a = false, bool transpose_b = false,
         cublasComputeType_t compute = CUBLAS_COMPUTE_32F) {
        EXPECT_EQ(cublasLtCreate(&library), CUBLAS_STATUS_SUCCESS);
        EXPECT_EQ(cublasLtMatmulDescCreate(&description, compute, CUDA_R_32F),
                  CUBLAS_STATUS_SUCCESS);
        set_operation(CUBLASLT_MATMUL_DESC_TRANSA, transpose_a);
        set_operation(CUBLASLT_MATMUL_DESC_TRANSB, transpose_b);
        const Operand* operands[4] = {&a, &b, &c, &d};
        for (int i = 0; i < 4; ++i) make_layout(i, *operands[i]);
        EXPECT_EQ(cublasLtMatmulPreferenceCreate(&preference), CUBLAS_STATUS_SUCCESS);
        prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
               uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
    }
    ~Call() {
        cublasLtMatmulPreferenceDestroy(preference);
        for (auto layout : layouts) cublasLtMatrixLayoutDestroy(layout);
        cublasLtMatmulDescDestroy(description);
        cublasLtDestroy(library);
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    void set_operation(cublasLtMatmulDescAttributes_t attribute, bool transpose) {
        const cublasOperation_t operation = transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
        EXPECT_EQ(
            cublasLtMatmulDescSetAttribute(description, attribute, &operation, sizeof operation),
            CUBLAS_STATUS_SUCCESS);
    }
    template <typename T>
    void set_layout(int i, cublasLtMatrixLayoutAttribute_t attribute, T value) {
        EXPECT_EQ(cublasLtMatrixLayoutSetAttribute(layouts[i], attribute, &value, sizeof value),
                  CUBLAS_STATUS_SUCCESS);
    }
    void make_layout(int i, const Operand& o) {
        EXPECT_EQ(cublasLtMatrixLayoutCreate(&layouts[i], o.type, static_cast<uint64_t>(o.rows),
                                             static_cast<uint64_t>(o.columns), o.leading),
                  CUBLAS_STATUS_SUCCESS);
        if (o.row_major) {
            set_layout(i, CUBLASLT_MATRIX_LAYOUT_ORDER, int32_t{CUBLASLT_ORDER_ROW});
        }
        if (o.batch == 1) return;
        set_layout(i, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<int32_t>(o.batch));
        set_layout(i, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, o.stride);
    }
    template <typename T>
    void prefer(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
        EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
                  CUBLAS_STATUS_SUCCESS);
    }
    // Of A and B, of C and D.
    void prefer_alignments(int64_t operands, int64_t results) {
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(operands));
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(operands));
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(results));
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(results));
    }

    cublasStatus_t find() {
        return cublasLtMatmulAlgoGetHeuristic(library, description, layouts[0], layouts[1],
                                              layouts[2], layouts[3], preference, 8, results,
                                              &found);
    }
    // With the first algorithm found; find() before.
    cublasStatus_t run(const void* a, const void* b, const void* c, void* d, float alpha = 1,
                       float beta = 0, void* workspace = nullptr, size_t workspace_bytes = 0,
                       cudaStream_t stream = nullptr) {
        return cublasLtMatmul(library, description, &alpha, a, layouts[0], b, layouts[1], &beta, c,
                              layouts[2], d, layouts[3], found ? &results[0].algo : nullptr,
                              workspace, workspace_bytes, stream);
    }
};

// Largest error relative to what rounding of the result and of sums in fp32 allows.
inline double error(const Memory& a, const Memory& b, const Memory& c, const Memory& d,
                    bool transpose_a, bool transpose_b, double alpha, double beta) {
    const Operand& shape = d.shape();
    const int64_t depth = transpose_a ? a.shape().rows : a.shape().columns;
    const double rounding = shape.type == CUDA_R_32F   ? 0
                            : shape.type == CUDA_R_16F ? 0x1p-11
                                                       : 0x1p-8;
    double worst = 0;
    for (int64_t z = 0; z < shape.batch; ++z) {
        for (int64_t i = 0; i < shape.rows; ++i) {
            for (int64_t j = 0; j < shape.columns; ++j) {
                double sum = 0, size = 0;
                for (int64_t k = 0; k < depth; ++k) {
                    const double term = (transpose_a ? a.at(z, k, i) : a.at(z, i, k)) *
                                        (transpose_b ? b.at(z, j, k) : b.at(z, k, j));
                    sum += term;
                    size += std::abs(term);
                }
                double expected = alpha * sum, allowed = std::abs(alpha) * size * 0x1p-20;
                if (beta != 0) expected += beta * c.at(z, i, j);
                allowed += std::abs(expected) * rounding + 1e-6;
                const double difference = std::abs(d.at(z, i, j) - expected) / allowed;
                worst = std::isnan(difference) ? 1e9 : std::max(worst, difference);
            }
        }
    }
    return worst;
}

}  // namespace lmo::cuda
