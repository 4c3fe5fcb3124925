// The library thinks in columns: our row-major D = A B is its column-major D^T = B^T A^T, the same
// memory. So our B is its first operand, our rows are its columns, and no matrix is ever moved.
#include "llmc/cuda/blas.h"

#include <algorithm>
#include <cassert>
#include <compare>
#include <map>

#include "llmc/core/error.h"

namespace lmo::cuda {

namespace {

std::string describe(const Product& p) {
    const auto matrix = [](int64_t rows, int64_t columns, bool transposed) {
        return "[" + std::to_string(rows) + ", " + std::to_string(columns) + "]" +
               (transposed ? "^T" : "");
    };
    const std::string a = p.transpose_a ? matrix(p.k, p.m, true) : matrix(p.m, p.k, false);
    const std::string b = p.transpose_b ? matrix(p.n, p.k, true) : matrix(p.k, p.n, false);
    return "the product " + a + " x " + b +
           (p.batch > 1 ? " in a batch of " + std::to_string(p.batch) : "") + " (" +
           to_string(p.type) + " to " + to_string(p.type_out) + ")";
}

void check(cublasStatus_t status, const std::string& doing) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw Error("CUDA: " + doing + ": " + cublasLtGetStatusString(status) + " (" +
                cublasLtGetStatusName(status) + ")");
}

// An object of the library, destroyed with its owner.
template <auto Destroy>
struct Destroyer {
    template <typename T>
    void operator()(T* object) const {
        Destroy(object);
    }
};
template <typename Handle, auto Destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroyer<Destroy>>;

using Library = Owned<cublasLtHandle_t, cublasLtDestroy>;
using Description = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

// What a plan depends on: the product without its addresses and factors.
struct Key {
    DType type, type_out;
    bool transpose_a, transpose_b;
    int64_t m, n, k, batch;
    int64_t lda, ldb, ldc, ldd;
    int64_t stride_a, stride_b, stride_c, stride_d;
    uint32_t align_a, align_b, align_c, align_d;  // bytes

    auto operator<=>(const Key&) const = default;
};

// The largest power of two, up to 256, that divides the address of every matrix of a batch. The
// heuristic trusts this: without it, it would choose kernels for 256.
uint32_t alignment(const void* address, int64_t stride, int64_t batch, DType type) {
    uint64_t bits = reinterpret_cast<uintptr_t>(address) | 256;
    if (batch > 1) bits |= static_cast<uint64_t>(stride) * size_of(type);
    return static_cast<uint32_t>(bits & ~(bits - 1));
}

Key key_of(const Product& p) {
    Key key{};
    key.type = p.type;
    key.type_out = p.type_out;
    key.transpose_a = p.transpose_a;
    key.transpose_b = p.transpose_b;
    key.m = p.m;
    key.n = p.n;
    key.k = p.k;
    key.batch = p.batch;
    key.lda = p.lda;
    key.ldb = p.ldb;
    key.ldc = p.ldc;
    key.ldd = p.ldd;
    key.stride_a = p.stride_a;
    key.stride_b = p.stride_b;
    key.stride_c = p.stride_c;
    key.stride_d = p.stride_d;
    key.align_a = alignment(p.a, p.stride_a, p.batch, p.type);
    key.align_b = alignment(p.b, p.stride_b, p.batch, p.type);
    key.align_c = alignment(p.c, p.stride_c, p.batch, p.type_out);
    key.align_d = alignment(p.d, p.stride_d, p.batch, p.type_out);
    return key;
}

cudaDataType_t data_type(DType type) {
    assert(type == DType::f32 || type == DType::f16 || type == DType::bf16);
    if (type == DType::f32) return CUDA_R_32F;
    return type == DType::f16 ? CUDA_R_16F : CUDA_R_16BF;
}

struct Plan {
    Description description;
    Layout first, second, c, d;  // first: our B, second: our A
    cublasLtMatmulAlgo_t algorithm{};
    size_t workspace_bytes = 0;
};

Description make_description(const Key& key) {
    cublasLtMatmulDesc_t raw = nullptr;
    check(cublasLtMatmulDescCreate(&raw, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
    Description description(raw);
    const auto set_operation = [&](cublasLtMatmulDescAttributes_t attribute, bool transpose) {
        const cublasOperation_t operation = transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
        check(cublasLtMatmulDescSetAttribute(raw, attribute, &operation, sizeof operation),
              "describing the transposes of a product");
    };
    set_operation(CUBLASLT_MATMUL_DESC_TRANSA, key.transpose_b);
    set_operation(CUBLASLT_MATMUL_DESC_TRANSB, key.transpose_a);
    return description;
}

// Of a row-major [rows, columns] matrix.
Layout make_layout(DType type, int64_t rows, int64_t columns, int64_t leading, int64_t batch,
                   int64_t stride) {
    assert(leading >= columns);
    cublasLtMatrixLayout_t raw = nullptr;
    check(cublasLtMatrixLayoutCreate(&raw, data_type(type), static_cast<uint64_t>(columns),
                                     static_cast<uint64_t>(rows), leading),
          "describing a matrix");
    Layout layout(raw);
    if (batch == 1) return layout;
    const int32_t count = static_cast<int32_t>(batch);
    assert(count == batch);
    check(cublasLtMatrixLayoutSetAttribute(raw, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                           sizeof count),
          "describing a batch");
    check(cublasLtMatrixLayoutSetAttribute(raw, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                           &stride, sizeof stride),
          "describing a batch");
    return layout;
}

Preference make_preference(const Key& key, uint64_t workspace_bytes) {
    cublasLtMatmulPreference_t raw = nullptr;
    check(cublasLtMatmulPreferenceCreate(&raw), "choosing an algorithm");
    Preference preference(raw);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
        check(cublasLtMatmulPreferenceSetAttribute(raw, attribute, &value, sizeof value),
              "choosing an algorithm");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
    // INPLACE and OUTPUT_TYPE would round partial sums to 16 bits.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE |
                              CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.align_b);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.align_a);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.align_c);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.align_d);
    return preference;
}

Plan make_plan(cublasLtHandle_t library, const Key& k, const std::string& product) {
    Plan plan;
    plan.description = make_description(k);
    plan.first = make_layout(k.type, k.transpose_b ? k.n : k.k, k.transpose_b ? k.k : k.n, k.ldb,
                             k.batch, k.stride_b);
    plan.second = make_layout(k.type, k.transpose_a ? k.k : k.m, k.transpose_a ? k.m : k.k, k.lda,
                              k.batch, k.stride_a);
    plan.c = make_layout(k.type_out, k.m, k.n, k.ldc, k.batch, k.stride_c);
    plan.d = make_layout(k.type_out, k.m, k.n, k.ldd, k.batch, k.stride_d);
    plan.workspace_bytes = Blas::workspace_bytes(k.m, k.n, k.batch);
    const Preference preference = make_preference(k, plan.workspace_bytes);
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        library, plan.description.get(), plan.first.get(), plan.second.get(), plan.c.get(),
        plan.d.get(), preference.get(), 1, &result, &found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && found == 0)) {
        throw Error("CUDA: cuBLASLt has no algorithm for " + product +
                    "; sizes that are multiples of 8 are always possible");
    }
    check(status, "choosing an algorithm for " + product);
    check(result.state, "choosing an algorithm for " + product);
    plan.algorithm = result.algo;
    return plan;
}

}  // namespace

struct Blas::Plans {
    Library library;
    std::map<Key, Plan> by_key;
};

Blas::Blas() : plans_(std::make_unique<Plans>()) {
    cublasLtHandle_t raw = nullptr;
    check(cublasLtCreate(&raw), "opening cuBLASLt");
    plans_->library.reset(raw);
}

Blas::~Blas() = default;

// Room for the fp32 partial sums of 32 parts of a small result; large results need no split.
size_t Blas::workspace_bytes(int64_t m, int64_t n, int64_t batch) {
    constexpr int64_t parts = 32, smallest = 64 << 10, largest = 32 << 20;
    const int64_t elements = std::min(m * n, largest) * batch;
    return static_cast<size_t>(std::min(largest, smallest + elements * 4 * parts));
}

void Blas::run(const Product& product, void* workspace, cudaStream_t stream) {
    assert(product.m > 0 && product.n > 0 && product.k > 0 && product.batch > 0);
    assert(reinterpret_cast<uintptr_t>(workspace) % 256 == 0);
    Product p = product;
    if (p.beta == 0) {  // not read, but the library wants a matrix
        p.c = p.d;
        p.ldc = p.ldd;
        p.stride_c = p.stride_d;
    }
    const Key key = key_of(p);
    auto plan = plans_->by_key.find(key);
    if (plan == plans_->by_key.end()) {
        plan =
            plans_->by_key.emplace(key, make_plan(plans_->library.get(), key, describe(p))).first;
    }
    const Plan& use = plan->second;
    const cublasStatus_t status =
        cublasLtMatmul(plans_->library.get(), use.description.get(), &p.alpha, p.b, use.first.get(),
                       p.a, use.second.get(), &p.beta, p.c, use.c.get(), p.d, use.d.get(),
                       &use.algorithm, workspace, use.workspace_bytes, stream);
    if (status != CUBLAS_STATUS_SUCCESS) check(status, "computing " + describe(p));
}

std::string Blas::version() {
    const size_t number = cublasLtGetVersion();
    return "cuBLASLt " + std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) +
           "." + std::to_string(number % 100);
}

}  // namespace lmo::cuda
