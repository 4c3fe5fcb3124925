// The emulator's stand-in for cublasLt: results against float64 for all layouts and types.
#include "tests/emulator/cublaslt_call.h"

namespace lmo::cuda {
namespace {

struct Types {
    cudaDataType_t operands, result;
};
const Types kTypes[] = {{CUDA_R_32F, CUDA_R_32F},
                        {CUDA_R_16BF, CUDA_R_16BF},
                        {CUDA_R_16BF, CUDA_R_32F},
                        {CUDA_R_16F, CUDA_R_16F},
                        {CUDA_R_16F, CUDA_R_32F}};

void expect_right(Types types, bool transpose_a, bool transpose_b, int orders, int64_t batch,
                  float alpha, float beta, bool in_place) {
    constexpr int64_t m = 21, n = 19, k = 37;
    const Memory a(
        operand(types.operands, transpose_a ? k : m, transpose_a ? m : k, orders & 1, batch), 1);
    const Memory b(
        operand(types.operands, transpose_b ? n : k, transpose_b ? k : n, orders & 2, batch), 2);
    Operand shape = operand(types.result, m, n, orders & 4, batch);
    Memory d(shape, 3);
    shape.leading += 16;
    shape.stride *= 2;
    const Memory separate(shape, 4);
    const Memory before(d.shape(), 3);
    const Memory& c = in_place ? before : separate;
    Call call(a.shape(), b.shape(), c.shape(), d.shape(), transpose_a, transpose_b);
    call.prefer_alignments(a.shape().element_bytes(), c.shape().element_bytes());
    ASSERT_EQ(call.find(), CUBLAS_STATUS_SUCCESS);
    ASSERT_GT(call.found, 0);
    const void* c_data = in_place ? d.data() : c.data();
    ASSERT_EQ(call.run(a.data(), b.data(), c_data, d.data(), alpha, beta), CUBLAS_STATUS_SUCCESS);
    check(cudaDeviceSynchronize(), "multiplying");
    d.fetch();
    EXPECT_LE(error(a, b, c, d, transpose_a, transpose_b, alpha, beta), 1)
        << types.operands << " to " << types.result << ", transposes " << transpose_a << transpose_b
        << ", orders " << orders << ", batch " << batch << ", beta " << beta;
    EXPECT_EQ(d.spoiled(), 0);
}

TEST(CublasLt, ProductsOfAllLayouts) {
    for (Types types : kTypes) {
        for (int i = 0; i < 32; ++i) {
            expect_right(types, i & 1, i & 2, i >> 2, 1, 1, 0, true);
            expect_right(types, i & 1, i & 2, i >> 2, 2, -0.5f, 0.75f, i % 3 == 0);
        }
    }
}

TEST(CublasLt, LargeSumsStayExact) {
    constexpr int64_t m = 5, n = 19, k = 5000;
    const Memory a(operand(CUDA_R_32F, m, k), 1), b(operand(CUDA_R_32F, k, n), 2);
    Memory d(operand(CUDA_R_32F, m, n), 3);
    Call call(a.shape(), b.shape(), d.shape(), d.shape());
    ASSERT_EQ(call.run(a.data(), b.data(), d.data(), d.data()), CUBLAS_STATUS_SUCCESS);
    d.fetch();
    EXPECT_LE(error(a, b, d, d, false, false, 1, 0), 0.1);
}

TEST(CublasLt, Tf32RoundsOperands) {
    const Memory a(operand(CUDA_R_32F, 33, 64), 1), b(operand(CUDA_R_32F, 64, 17), 2);
    Memory d(operand(CUDA_R_32F, 33, 17), 3);
    Call call(a.shape(), b.shape(), d.shape(), d.shape(), false, false,
              CUBLAS_COMPUTE_32F_FAST_TF32);
    ASSERT_EQ(call.run(a.data(), b.data(), d.data(), d.data()), CUBLAS_STATUS_SUCCESS);
    d.fetch();
    const double worst = error(a, b, d, d, false, false, 1, 0);
    EXPECT_GT(worst, 4);     // more than fp32's
    EXPECT_LT(worst, 1024);  // 2^-10 of the terms, where fp32 is allowed 2^-20
}

// One matrix times a batch.
TEST(CublasLt, BatchStrideMayBeZero) {
    Operand one = operand(CUDA_R_16BF, 24, 40, false, 3);
    one.stride = 0;
    const Memory a(one, 1), b(operand(CUDA_R_16BF, 40, 16, false, 3), 2);
    Memory d(operand(CUDA_R_32F, 24, 16, false, 3), 3);
    Call call(a.shape(), b.shape(), d.shape(), d.shape());
    call.prefer_alignments(16, 16);
    ASSERT_EQ(call.find(), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(call.run(a.data(), b.data(), d.data(), d.data()), CUBLAS_STATUS_SUCCESS);
    d.fetch();
    EXPECT_LE(error(a, b, d, d, false, false, 1, 0), 1);
}

// NaN in C does not matter where beta is zero; NaN in A reaches its row alone.
TEST(CublasLt, NotANumber) {
    Memory a(operand(CUDA_R_32F, 8, 8, true), 1);
    const Memory b(operand(CUDA_R_32F, 8, 8, true), 2);
    Memory d(operand(CUDA_R_32F, 8, 8, true), 3);
    const float nan = NAN;
    check(cudaMemcpy(d.data(), &nan, 4, cudaMemcpyHostToDevice), "copying");
    check(cudaMemcpy(static_cast<float*>(a.data()) + 3 * a.shape().leading + 5, &nan, 4,
                     cudaMemcpyHostToDevice),
          "copying");
    Call call(a.shape(), b.shape(), d.shape(), d.shape());
    ASSERT_EQ(call.run(a.data(), b.data(), d.data(), d.data()), CUBLAS_STATUS_SUCCESS);
    d.fetch();
    for (int64_t i = 0; i < 8; ++i) {
        for (int64_t j = 0; j < 8; ++j) EXPECT_EQ(std::isnan(d.at(0, i, j)), i == 3);
    }
}

TEST(CublasLt, RunsOnStreamsAndInGraphs) {
    const Memory a(operand(CUDA_R_16BF, 48, 96), 1), b(operand(CUDA_R_16BF, 96, 16), 2);
    Memory d(operand(CUDA_R_32F, 48, 16), 3);
    Call call(a.shape(), b.shape(), d.shape(), d.shape());
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
    ASSERT_EQ(call.run(a.data(), b.data(), d.data(), d.data(), 1, 1, nullptr, 0, stream),
              CUBLAS_STATUS_SUCCESS);
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream, &graph), "capturing");
    cudaGraphExec_t executable = nullptr;
    check(cudaGraphInstantiate(&executable, graph, 0), "instantiating");
    d.fetch();
    const Memory before(d.shape(), 3);
    EXPECT_EQ(d.bytes(), before.bytes());  // only recorded
    for (int i = 0; i < 2; ++i) check(cudaGraphLaunch(executable, stream), "launching");
    check(cudaStreamSynchronize(stream), "waiting");
    d.fetch();
    EXPECT_LE(error(a, b, before, d, false, false, 2, 1), 2);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace lmo::cuda
