// Newton-Schulz in bf16 on a CPU that has it: what is special about its tiles.
#include "tests/unit/newton_schulz_test.h"

namespace lmo {
namespace {

class NewtonSchulzCpuTest : public NewtonSchulzTest {};

// More rows, columns and depth than are worked on at once, and rests of them.
TEST_P(NewtonSchulzCpuTest, Bf16SidesThatNothingDivides) {
    if (!backend_->has_newton_schulz(DType::bf16)) GTEST_SKIP() << "no bf16 here";
    const Steps steps(2, jordan[0]);
    for (const auto& [m, n] : {std::pair{61, 803}, std::pair{803, 61}, std::pair{113, 119}}) {
        check(DType::bf16, m, n, {steps}, 1, 1);
    }
}

// Rows of 4 KiB have a stride of their own.
TEST_P(NewtonSchulzCpuTest, Bf16RowsAsLongAsPages) {
    if (!backend_->has_newton_schulz(DType::bf16)) GTEST_SKIP() << "no bf16 here";
    check(DType::bf16, 35, 2048, {{jordan[0]}}, 1, 1);
}

// On a CPU in bf16 each element is summed in one order, whoever does it, in a list or alone; but
// not by a library.
TEST_P(NewtonSchulzCpuTest, Bf16HasTheBitsOfAnyThreads) {
    if (!backend_->has_newton_schulz(DType::bf16)) GTEST_SKIP() << "no bf16 here";
    if (backend_->describe().find("AMX") != std::string::npos) GTEST_SKIP() << "AMX by oneDNN";
    for (const auto& [m, n] : {std::pair{150, 270}, std::pair{270, 150}}) {
        const auto list = [&, m = m, n = n](int64_t count) {
            const Tensor x = put(DType::f32, {3, m, n}, random_values(3 * m * n, 1));
            std::vector<Tensor> matrices;
            for (int64_t i = 0; i < count; ++i) matrices.push_back(x.slice(i * m * n, {m, n}));
            run(DType::bf16, matrices, {jordan});
            return get(matrices[0]);
        };
        use_threads(1);
        const Values one = list(1);
        EXPECT_EQ(list(3), one);
        for (const int threads : {2, 3}) {
            use_threads(threads);
            EXPECT_EQ(list(1), one);
            EXPECT_EQ(list(3), one);
        }
    }
}

// The transpose of a matrix has the transpose of its result, to the bit.
TEST_P(NewtonSchulzCpuTest, Bf16TakesTallMatricesAsWideOnes) {
    if (!backend_->has_newton_schulz(DType::bf16)) GTEST_SKIP() << "no bf16 here";
    const int64_t m = 45, n = 101;
    const Values values = random_values(m * n, 1);
    const Tensor wide = put(DType::f32, {m, n}, values);
    const Tensor tall = put(DType::f32, {n, m}, transposed(values, m, n));
    for (const Tensor& x : {wide, tall}) run(DType::bf16, {x}, {jordan});
    EXPECT_EQ(transposed(get(wide), m, n), get(tall));
}

LMO_ON_THE_ORACLE(NewtonSchulzCpuTest);

}  // namespace
}  // namespace lmo
