// What only the CPU backend has: the plain GEMM and the kernels of every instruction set that this
// machine can run, the bf16 primitives, its description and its memory.
#include "llmc/core/error.h"
#include "llmc/cpu/bf16_matmul.h"
#include "llmc/cpu/gemm.h"
#include "llmc/cpu/newton_schulz_bf16.h"
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

template <typename T>
void check_plain_gemm(const cpu::Kernels& kernels, int64_t m, int64_t n, int64_t k, bool ta,
                      bool tb, T beta) {
    const cpu::Blas blas(kernels, 2);
    const int64_t lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 1, ldc = n + 2;
    const auto make = [](int64_t count, uint64_t seed) {
        const Values values = random_values(count, seed);
        return std::vector<T>(values.begin(), values.end());
    };
    const std::vector<T> a = make((ta ? k : m) * lda, 1), b = make((tb ? n : k) * ldb, 2);
    std::vector<T> c = beta == 0 ? std::vector<T>(m * ldc, T(NAN)) : make(m * ldc, 3);
    const std::vector<T> old = c;
    blas.plain_gemm(cpu::Product<T>{ta, tb, m, n, k, T(0.5), a.data(), lda, b.data(), ldb, beta,
                                    c.data(), ldc});
    const double allowed = static_cast<double>(k + 4) * (sizeof(T) == 8 ? 1e-15 : 3e-7);
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            double sum = 0;
            for (int64_t l = 0; l < k; ++l) {
                sum += double(a[ta ? l * lda + i : i * lda + l]) *
                       double(b[tb ? j * ldb + l : l * ldb + j]);
            }
            const double exact =
                0.5 * sum + (beta == 0 ? 0.0 : double(beta) * double(old[i * ldc + j]));
            ASSERT_NEAR(c[i * ldc + j], exact, allowed) << i << ", " << j;
        }
        for (int64_t j = n; j < ldc; ++j) {  // padding is left alone
            ASSERT_EQ(std::memcmp(&c[i * ldc + j], &old[i * ldc + j], sizeof(T)), 0);
        }
    }
}

TEST(CpuKernels, PlainGemmOfEveryInstructionSet) {
    for (const cpu::Kernels& kernels : cpu::supported_kernels()) {
        SCOPED_TRACE(kernels.isa);
        for (const bool ta : {false, true}) {
            for (const bool tb : {false, true}) {
                check_plain_gemm<float>(kernels, 75, 131, 300, ta, tb, 0.0f);
                check_plain_gemm<double>(kernels, 75, 131, 300, ta, tb, 1.5);
                check_plain_gemm<float>(kernels, 1, 1, 1, ta, tb, 1.0f);
                check_plain_gemm<double>(kernels, 3, 200, 2, ta, tb, 0.0);
            }
        }
    }
}

// Results of several kernels with one table.
std::vector<float> results_of(const cpu::Kernels& kernels) {
    const int64_t rows = 3, columns = 1002;
    const Values values = random_values(rows * columns, 1, 4.0);
    const std::vector<int32_t> targets = {5, 1001, 0};
    const std::vector<float> x(values.begin(), values.end());
    std::vector<float> logits = x, losses(rows), scores = x, lse(rows), silu(x.size() / 2);
    std::vector<float> normed(x.size()), rstd(rows), moved = x, first = x, second(x.size(), 0.5f);
    const cpu::ClassifierRows classifier{DType::f32,    logits.data(), targets.data(),
                                         losses.data(), columns,       1.0};
    kernels.classifier(classifier, 0, rows);
    kernels.softmax(DType::f32,
                    {rows, columns, 700, scores.data(), lse.data(), nullptr, nullptr, 0});
    kernels.swiglu_forward({DType::f32, x.data(), nullptr, silu.data(), columns / 2}, 0, rows);
    kernels.rmsnorm_forward({DType::f32, DType::f32, x.data(), nullptr, x.data(), nullptr,
                             normed.data(), rstd.data(), columns, 1e-5},
                            0, rows);
    kernels.adam({DType::f32, moved.data(), moved.data(), first.data(), second.data(), 1, 0.9, 0.99,
                  1e-8, 2, 3},
                 0, rows * columns);
    std::vector<float> all;
    for (const auto* part :
         {&logits, &losses, &scores, &lse, &silu, &normed, &rstd, &moved, &first}) {
        all.insert(all.end(), part->begin(), part->end());
    }
    return all;
}

// All instruction sets compute the same functions, up to rounding.
TEST(CpuKernels, InstructionSetsAgree) {
    const std::vector<float> baseline = results_of(cpu::supported_kernels().front());
    for (const cpu::Kernels& kernels : cpu::supported_kernels()) {
        const std::vector<float> results = results_of(kernels);
        for (size_t i = 0; i < results.size(); ++i) {
            ASSERT_NEAR(results[i], baseline[i], 2e-6 * (1 + std::abs(baseline[i])))
                << kernels.isa << " at " << i;
        }
    }
}

// oneDNN's bf16 products also exist, slowly, on processors without AMX, so they can be checked
// there.
TEST(CpuBf16, PrimitivesMatchTheProductOfTheRoundedOperands) {
    cpu::Bf16Matmul matmul;
    const int64_t batch = 2, m = 33, n = 65, k = 40;
    const auto halves = [](int64_t count, uint64_t seed) {
        std::vector<uint16_t> bits;
        for (const double x : random_values(count, seed)) bits.push_back(float_to_bf16(float(x)));
        return bits;
    };
    for (const bool ta : {false, true}) {
        for (const bool tb : {false, true}) {
            std::vector<uint16_t> a = halves(batch * m * k, 1), b = halves(batch * k * n, 2);
            std::vector<float> c(batch * m * n, 2.0f);
            Gemm op;
            op.a = {a.data(), DType::bf16, ta ? Shape{batch, k, m} : Shape{batch, m, k}};
            op.b = {b.data(), DType::bf16, tb ? Shape{batch, n, k} : Shape{batch, k, n}};
            op.c = {c.data(), DType::f32, {batch, m, n}};
            op.transpose_a = ta;
            op.transpose_b = tb;
            op.alpha = 0.5;
            op.beta = 0.25;
            if (!matmul.run(op, 2)) GTEST_SKIP() << "no bf16 primitives on this machine";
            for (int64_t i = 0; i < batch * m * n; ++i) {
                const int64_t s = i / (m * n), row = i / n % m, column = i % n;
                double sum = 0;
                for (int64_t l = 0; l < k; ++l) {
                    const int64_t at = s * m * k + (ta ? l * m + row : row * k + l);
                    const int64_t bt = s * k * n + (tb ? column * k + l : l * n + column);
                    sum += double(bf16_to_float(a[at])) * bf16_to_float(b[bt]);
                }
                ASSERT_NEAR(c[i], 0.5 * sum + 0.5, 1e-4);
            }
        }
    }
}

// What processors with AMX do, by whatever bf16 instructions this one has.
TEST(CpuBackend, NewtonSchulzByTheLibraryAgreesWithTheTiles) {
    const cpu::Bf16Tiles* tiles = cpu::bf16_tiles();
    if (!tiles) GTEST_SKIP() << "no bf16 on this machine";
    cpu::Bf16Matmul library;
    const std::vector<NewtonSchulzStep> steps = {
        {3.4445, -4.7750, 2.0315}, {1.5, -0.5, 0.0}, {3.4445, -4.7750, 2.0315}};
    for (const auto& [m, n] : {std::pair{70, 150}, std::pair{150, 70}, std::pair{64, 64}}) {
        std::vector<float> x[2];
        for (const double value : random_values(m * n, 1)) x[0].push_back(float(value));
        x[1] = x[0];
        for (const bool by_library : {false, true}) {
            const Tensor tensor{x[by_library].data(), DType::f32, {m, n}};
            const NewtonSchulz op{{&tensor, 1}, steps, 1.0, 0.0, {}, DType::bf16};
            const cpu::Bf16NewtonSchulz iteration(op, 2, by_library ? &library : nullptr);
            std::vector<double> memory(iteration.workspace_bytes() / 8 + 8);  // and 64 bytes
            void* start = memory.data();
            size_t room = memory.size() * 8;
            std::align(64, iteration.workspace_bytes(), start, room);
            cpu::Scratch scratch(Tensor{start, DType::f64, {int64_t(room / 8)}});
            iteration.run(*tiles, tensor, 40.0, scratch);
        }
        for (int64_t i = 0; i < m * n; ++i) ASSERT_NEAR(x[0][i], x[1][i], 0.01) << i;
    }
}

TEST(CpuBackend, DescribesItself) {
    const std::string text = make_cpu_backend(3)->describe();
    EXPECT_EQ(text.rfind("CPU, 3 threads, ", 0), 0u) << text;
    EXPECT_NE(text.find("GEMM by "), std::string::npos) << text;
    EXPECT_NE(make_cpu_backend(0)->describe().find("CPU, "), std::string::npos);
}

// Small matrices are worked on side by side, each by one thread.
TEST(CpuBackend, NewtonSchulzOfSmallMatricesHasEqualBitsForAnyNumberOfThreads) {
    const NewtonSchulzStep steps[] = {{3.4445, -4.7750, 2.0315}, {1.875, -1.25, 0.375}};
    for (const Shape& shape : {Shape{40, 24}, Shape{24, 40}, Shape{130, 130}}) {
        std::vector<std::vector<float>> results;
        for (const int threads : {1, 2, 3, 16}) {
            const auto backend = make_cpu_backend(threads);
            const Values values = random_values(7 * shape.count(), 5);
            std::vector<float> data(values.begin(), values.end());
            std::vector<Tensor> x;
            for (int i = 0; i < 7; ++i) {
                x.push_back({data.data() + i * shape.count(), DType::f32, shape});
            }
            NewtonSchulz op{x, steps, 1.0, 1e-7, {}};
            const size_t bytes = backend->workspace_bytes(op);
            std::vector<char> memory(bytes + 64 + 8, 'x');
            const size_t start = 64 - reinterpret_cast<uintptr_t>(memory.data()) % 64;
            op.workspace = {memory.data() + start, DType::f32, {int64_t(bytes / 4)}};
            backend->newton_schulz(op);
            for (size_t i = start + bytes; i < memory.size(); ++i) ASSERT_EQ(memory[i], 'x');
            results.push_back(data);
        }
        for (const auto& result : results) {
            ASSERT_EQ(std::memcmp(result.data(), results[0].data(), result.size() * 4), 0);
        }
    }
}

// Large tensors are cleared past the caches.
TEST(CpuBackend, LargeTensorsAreClearedToTheirEnds) {
    const auto backend = make_cpu_backend(2);
    const int64_t count = (int64_t(64) << 20) + 12346;  // bytes
    std::vector<char> memory(static_cast<size_t>(count) + 2 * 65, 'x');
    char* const start = memory.data() + 65;  // not aligned, as a view may be
    backend->zero({start, DType::u16, {count / 2}});
    for (int64_t i = -65; i < count + 65; ++i) {
        ASSERT_EQ(start[i], i < 0 || i >= count ? 'x' : 0) << i;
    }
}

TEST(CpuBackend, MemoryIsAlignedAndItsEndIsAnError) {
    const auto backend = make_cpu_backend(1);
    void* memory = backend->allocate(1);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 256, 0u);
    backend->release(memory);
    const size_t bytes = (size_t(5) << 20) + 1;  // huge pages and a rest
    memory = backend->allocate(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 256, 0u);
    std::memset(memory, 1, bytes);
    backend->release(memory);
    try {
        backend->allocate(size_t(1) << 60);
        FAIL() << "allocated 2^60 bytes";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("out of memory: 1099511627776 MiB asked for"),
                  std::string::npos)
            << error.what();
    }
}

}  // namespace
}  // namespace lmo
