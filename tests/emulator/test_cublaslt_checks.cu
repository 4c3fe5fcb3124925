// The emulator's stand-in for cublasLt: algorithms and their workspaces, and wrong calls refused.
#include <cstring>

#include "tests/emulator/cublaslt_call.h"

namespace lmo::cuda {
namespace {

// ---- algorithms --------------------------------------------------------------------------------

// The same product several times with the first algorithm found, a different result counted once.
int different_results(uint32_t reductions) {
    const Memory a(operand(CUDA_R_32F, 16, 512), 1), b(operand(CUDA_R_32F, 512, 16), 2);
    Operand scratch = operand(CUDA_R_32F, 1 << 16, 1);
    const Memory workspace(scratch, 4);
    Memory d(operand(CUDA_R_32F, 16, 16), 3);
    Call call(a.shape(), b.shape(), d.shape(), d.shape());
    call.prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    call.prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{1} << 18);
    EXPECT_EQ(call.find(), CUBLAS_STATUS_SUCCESS);
    const size_t needed = call.results[0].workspaceSize;
    EXPECT_EQ(needed > 0, reductions == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    std::vector<std::vector<char>> results;
    for (int i = 0; i < 6; ++i) {
        EXPECT_EQ(call.run(a.data(), b.data(), d.data(), d.data(), 1, 0, workspace.data(),
                           size_t{1} << 18),
                  CUBLAS_STATUS_SUCCESS);
        d.fetch();
        EXPECT_LE(error(a, b, d, d, false, false, 1, 0), 1);
        if (std::find(results.begin(), results.end(), d.bytes()) == results.end()) {
            results.push_back(d.bytes());
        }
    }
    return static_cast<int>(results.size());
}

TEST(CublasLt, OnlySumsInPlaceChangeTheirOrder) {
    EXPECT_EQ(different_results(CUBLASLT_REDUCTION_SCHEME_NONE), 1);
    EXPECT_EQ(different_results(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE), 1);
    EXPECT_GT(different_results(CUBLASLT_REDUCTION_SCHEME_INPLACE), 1);
}

TEST(CublasLt, WorkspaceIsOverwritten) {
    const Memory a(operand(CUDA_R_32F, 8, 256), 1), b(operand(CUDA_R_32F, 256, 8), 2);
    Memory workspace(operand(CUDA_R_32F, 1 << 12, 1), 4), d(operand(CUDA_R_32F, 8, 8), 3);
    const Memory before(workspace.shape(), 4);
    Call call(a.shape(), b.shape(), d.shape(), d.shape());
    call.prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    call.prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{1} << 14);
    ASSERT_EQ(call.find(), CUBLAS_STATUS_SUCCESS);
    const size_t needed = call.results[0].workspaceSize;
    ASSERT_GT(needed, 0u);
    EXPECT_EQ(call.run(a.data(), b.data(), d.data(), d.data(), 1, 0, workspace.data(), needed - 1),
              CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(call.run(a.data(), b.data(), d.data(), d.data(), 1, 0, nullptr, needed),
              CUBLAS_STATUS_INVALID_VALUE);
    ASSERT_EQ(call.run(a.data(), b.data(), d.data(), d.data(), 1, 0, workspace.data(), needed),
              CUBLAS_STATUS_SUCCESS);
    workspace.fetch();
    EXPECT_NE(memcmp(workspace.bytes().data(), before.bytes().data(), needed), 0);
    EXPECT_EQ(memcmp(workspace.bytes().data() + needed, before.bytes().data() + needed,
                     workspace.bytes().size() - needed),
              0);
}

TEST(CublasLt, AlgorithmFitsItsProblemOnly) {
    const Memory a(operand(CUDA_R_32F, 8, 16), 1), b(operand(CUDA_R_32F, 16, 8), 2);
    const Memory wide(operand(CUDA_R_32F, 16, 12), 2);
    Memory d(operand(CUDA_R_32F, 8, 8), 3), wide_d(operand(CUDA_R_32F, 8, 12), 3);
    Call call(a.shape(), b.shape(), d.shape(), d.shape());
    Call other(a.shape(), wide.shape(), wide_d.shape(), wide_d.shape());
    ASSERT_EQ(call.find(), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(other.find(), CUBLAS_STATUS_SUCCESS);
    cublasLtMatmulHeuristicResult_t result;
    const auto check_algorithm = [&](const Call& of) {
        return cublasLtMatmulAlgoCheck(call.library, call.description, call.layouts[0],
                                       call.layouts[1], call.layouts[2], call.layouts[3],
                                       &of.results[0].algo, &result);
    };
    EXPECT_EQ(check_algorithm(call), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(check_algorithm(other), CUBLAS_STATUS_NOT_SUPPORTED);
    call.results[0] = other.results[0];
    EXPECT_EQ(call.run(a.data(), b.data(), d.data(), d.data()), CUBLAS_STATUS_NOT_SUPPORTED);
    call.results[0] = {};
    EXPECT_EQ(call.run(a.data(), b.data(), d.data(), d.data()), CUBLAS_STATUS_INVALID_VALUE);
}

// ---- wrong calls -------------------------------------------------------------------------------

// What the heuristic and the product say of these shapes.
void expect_refused(cublasStatus_t status, const Operand& a, const Operand& b, const Operand& c,
                    const Operand& d, bool transpose_a = false,
                    cublasComputeType_t compute = CUBLAS_COMPUTE_32F) {
    Call call(a, b, c, d, transpose_a, false, compute);
    EXPECT_EQ(call.find(), status);
    EXPECT_EQ(call.found, 0);
    float memory[4];  // is not touched
    EXPECT_EQ(call.run(memory, memory, memory, memory), status);
}

TEST(CublasLt, RefusesShapes) {
    constexpr auto invalid = CUBLAS_STATUS_INVALID_VALUE;
    constexpr auto unsupported = CUBLAS_STATUS_NOT_SUPPORTED;
    constexpr auto f32 = CUDA_R_32F, f16 = CUDA_R_16F, b16 = CUDA_R_16BF;
    const Operand a = operand(f32, 8, 16), b = operand(f32, 16, 4), d = operand(f32, 8, 4);
    expect_refused(invalid, a, operand(f32, 12, 4), d, d);  // k differs
    expect_refused(invalid, a, b, d, operand(f32, 8, 5));   // n
    expect_refused(invalid, a, b, operand(f32, 9, 4), d);   // C's rows
    expect_refused(invalid, a, b, d, d, true);              // A is not transposed
    expect_refused(invalid, operand(f32, 8, 0), operand(f32, 0, 4), d, d);
    expect_refused(invalid, a, operand(f32, 16, 4, false, 2), d, d);  // batch of B alone
    Operand narrow = a;
    narrow.leading = 7;
    expect_refused(invalid, narrow, b, d, d);
    Operand onto_itself = operand(f32, 8, 4, false, 2);
    onto_itself.stride = 0;
    expect_refused(invalid, operand(f32, 8, 16, false, 2), operand(f32, 16, 4, false, 2),
                   onto_itself, onto_itself);
    expect_refused(unsupported, operand(f16, 8, 16), operand(b16, 16, 4), d, d);
    expect_refused(unsupported, a, b, operand(b16, 8, 4), operand(b16, 8, 4));
    expect_refused(unsupported, a, b, operand(b16, 8, 4), d);
    expect_refused(unsupported, operand(f16, 8, 16), operand(f16, 16, 4), operand(b16, 8, 4),
                   operand(b16, 8, 4));
    expect_refused(unsupported, operand(CUDA_R_64F, 8, 16), operand(CUDA_R_64F, 16, 4), d, d);
    expect_refused(unsupported, a, b, operand(f32, 8, 4, true), d);  // orders of C and D
    expect_refused(unsupported, operand(b16, 8, 16), operand(b16, 16, 4), d, d, false,
                   CUBLAS_COMPUTE_32F_FAST_TF32);
}

TEST(CublasLt, RefusesAttributes) {
    const Operand o = operand(CUDA_R_32F, 8, 8);
    Call call(o, o, o, o);
    constexpr auto unsupported = CUBLAS_STATUS_NOT_SUPPORTED;
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
        return cublasLtMatmulDescSetAttribute(call.description, attribute, &value, sizeof value);
    };
    EXPECT_EQ(set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_DEFAULT}),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_BIAS}), unsupported);
    EXPECT_EQ(set(CUBLASLT_MATMUL_DESC_POINTER_MODE, int32_t{CUBLASLT_POINTER_MODE_DEVICE}),
              unsupported);
    EXPECT_EQ(set(CUBLASLT_MATMUL_DESC_TRANSA, int32_t{CUBLAS_OP_C}), unsupported);
    EXPECT_EQ(set(CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, int32_t{4}), unsupported);
    EXPECT_EQ(set(CUBLASLT_MATMUL_DESC_TRANSA, int64_t{CUBLAS_OP_T}), CUBLAS_STATUS_INVALID_VALUE);
    const uint32_t three = 3;
    EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(
                  call.preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &three, 4),
              CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(call.preference, CUBLASLT_MATMUL_PREF_IMPL_MASK,
                                                   &three, 4),
              unsupported);
    cublasLtMatmulDesc_t none = nullptr;
    EXPECT_EQ(cublasLtMatmulDescCreate(&none, CUBLAS_COMPUTE_16F, CUDA_R_16F), unsupported);
    EXPECT_EQ(cublasLtMatmulDescCreate(&none, CUBLAS_COMPUTE_32F, CUDA_R_64F), unsupported);
}

TEST(CublasLt, RefusesMissingObjects) {
    const Memory o(operand(CUDA_R_32F, 8, 8), 1);
    Memory d(o.shape(), 2);
    Call call(o.shape(), o.shape(), o.shape(), o.shape());
    EXPECT_EQ(call.run(nullptr, o.data(), d.data(), d.data()), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(call.run(o.data(), o.data(), nullptr, d.data()), CUBLAS_STATUS_INVALID_VALUE);
}

// A message of Error has to contain the text.
void expect_error(const char* text, const std::function<void()>& f) {
    try {
        f();
        check(cudaDeviceSynchronize(), "multiplying");
        FAIL() << "no error: " << text;
    } catch (const emulator::Error& error) {
        EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
}

TEST(CublasLt, FindsWrongMemory) {
    const Memory a(operand(CUDA_R_16BF, 32, 64), 1), b(operand(CUDA_R_16BF, 64, 32), 2);
    Memory d(operand(CUDA_R_16BF, 32, 32), 3);
    Call call(a.shape(), b.shape(), d.shape(), d.shape());
    ASSERT_EQ(call.find(), CUBLAS_STATUS_SUCCESS);
    const auto at = [](const Memory& memory, int64_t elements) {
        return static_cast<void*>(static_cast<bf16*>(memory.data()) + elements);
    };
    const auto run = [&](const void* first, const void* second, const void* c, void* result,
                         void* workspace = nullptr, size_t bytes = 0) {
        return [&call, first, second, c, result, workspace, bytes] {
            call.run(first, second, c, result, 1, 1, workspace, bytes);
        };
    };
    expect_error("A reaches outside", run(at(a, 128), b.data(), d.data(), d.data()));
    expect_error("B reaches outside", run(a.data(), at(b, 128), d.data(), d.data()));
    expect_error("D reaches outside", run(a.data(), b.data(), d.data(), at(d, 128)));
    expect_error("C reaches outside", run(a.data(), b.data(), at(d, 128), d.data()));
    std::vector<bf16> on_host(4096);
    expect_error("A reaches outside", run(on_host.data(), b.data(), d.data(), d.data()));
    expect_error("workspace", run(a.data(), b.data(), d.data(), d.data(), on_host.data(), 256));
    expect_error("workspace", run(a.data(), b.data(), d.data(), d.data(), at(d, 1), 256));
    expect_error("workspace overlaps", run(a.data(), b.data(), d.data(), d.data(), d.data(), 256));
}

// Views of one allocation large enough for all of them.
TEST(CublasLt, FindsOverlapsAndBrokenPromises) {
    constexpr int64_t n = 32, pitch = 128;
    Operand o = operand(CUDA_R_32F, n, n, true);
    o.leading = pitch;
    const Memory all(operand(CUDA_R_32F, 1 << 14, 1), 1);
    const auto at = [&](int64_t element) {
        return static_cast<void*>(static_cast<float*>(all.data()) + element);
    };
    constexpr int64_t second = n * pitch, third = 2 * n * pitch;
    Call call(o, o, o, o);
    call.prefer_alignments(128, 128);
    ASSERT_EQ(call.find(), CUBLAS_STATUS_SUCCESS);
    const auto run = [&](int64_t a, int64_t b, int64_t c, int64_t d) {
        return [&call, &at, a, b, c, d] {
            EXPECT_EQ(call.run(at(a), at(b), at(c), at(d), 1, 1), CUBLAS_STATUS_SUCCESS);
        };
    };
    run(0, second, third, third)();
    run(0, 0, third, third)();    // A may be B
    run(0, second, 64, third)();  // C beside A
    run(0, second, third, 64)();  // D beside A in the same lines
    run(0, second, third, pitch - n)();
    expect_error("D overlaps A", run(0, second, third, 0));
    expect_error("D overlaps A", run(pitch + 64, third, 3 * second, 64));
    expect_error("D overlaps B", run(0, second, third, second));
    expect_error("D overlaps C", run(0, second, third, third + pitch));
    expect_error("less aligned", run(4, second, third, third));
    call.prefer_alignments(16, 16);
    ASSERT_EQ(call.find(), CUBLAS_STATUS_SUCCESS);
    run(4, second, third, third)();
    expect_error("less aligned", run(4, second + 1, third, third));
    call.prefer_alignments(4, 4);
    ASSERT_EQ(call.find(), CUBLAS_STATUS_SUCCESS);
    run(1, second + 3, third, third)();
}

#ifdef LMO_EMULATOR_RACE
TEST(CublasLt, FindsUninitialisedOperands) {
    const Operand o = operand(CUDA_R_32F, 8, 8);
    const Memory a(o, 1);
    void *fresh = nullptr, *result = nullptr;
    check(cudaMalloc(&fresh, 4096), "allocating");
    check(cudaMalloc(&result, 4096), "allocating");
    Call call(o, o, o, o);
    expect_error("never written", [&] { call.run(fresh, a.data(), result, result, 1.0f, 0.0f); });
    expect_error("never written",
                 [&] { call.run(a.data(), a.data(), result, result, 1.0f, 1.0f); });
    EXPECT_EQ(call.run(a.data(), a.data(), result, result), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(call.run(result, a.data(), fresh, fresh), CUBLAS_STATUS_SUCCESS);  // now written
    cudaFree(fresh);
    cudaFree(result);
}
#endif

}  // namespace
}  // namespace lmo::cuda
