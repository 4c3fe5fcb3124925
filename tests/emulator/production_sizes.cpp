// Operations on tensors of more than 2^31 elements: the first and the last row must be what a small
// tensor with the same row gives. The emulator runs the first and the last block of each launch
// only, on memory of which few pages exist, so an index that is too narrow shows itself in
// milliseconds: as a wrong row, or as an access outside of any tensor.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "dev/emulator/settings.h"
#include "llmc/core/random.h"
#include "llmc/cuda/symmetric.h"
#include "llmc/device/backend.h"

namespace lmo {
namespace {

constexpr int64_t kLimit = int64_t{1} << 31;

using Bytes = std::vector<char>;

class ProductionSizesTest : public ::testing::Test {
  protected:
    ProductionSizesTest() { emulator::settings().device_bytes = size_t{1} << 40; }
    ~ProductionSizesTest() override {
        for (void* block : blocks_) backend().release(block);
    }

    Backend& backend() {
        if (!backend_) backend_ = make_cuda_backend();
        return *backend_;
    }

    Tensor take(DType dtype, Shape shape) {
        Tensor tensor{nullptr, dtype, shape};
        tensor.data = backend().allocate(tensor.bytes());
        blocks_.push_back(tensor.data);
        return tensor;
    }

    Tensor workspace(size_t bytes) {
        return take(DType::u16, {static_cast<int64_t>(bytes + 1) / 2});
    }

    // `row` in the first and in the last row of the tensor; the rest stays untouched.
    void put(const Tensor& tensor, const Bytes& row) {
        for (const Tensor& place : ends(tensor, row.size())) {
            backend().copy_in(place, row.data());
        }
    }

    // The first row begins with the first bytes of this one, and the last row ends with its last
    // ones: what the first and the last block write of them.
    void expect(const Tensor& tensor, const Bytes& row, const char* name) {
        const size_t bytes = std::min(row.size(), size_t{32});
        const std::vector<Tensor> places = ends(tensor, bytes);
        Bytes first(bytes), last(bytes);
        backend().copy_out(first.data(), places[0]);
        backend().copy_out(last.data(), places[1]);
        EXPECT_EQ(first, Bytes(row.begin(), row.begin() + static_cast<long>(bytes))) << name;
        EXPECT_EQ(last, Bytes(row.end() - static_cast<long>(bytes), row.end())) << name;
    }

    Bytes all(const Tensor& tensor) {
        Bytes bytes(tensor.bytes());
        backend().copy_out(bytes.data(), tensor);
        return bytes;
    }

    // Runs on the first and the last block only.
    template <typename Op>
    void run_ends(const Op& op) {
        const emulator::SettingsGuard guard;
        emulator::settings().blocks = emulator::Blocks::first_and_last;
        op();
        backend().synchronize();
    }

    static Bytes random_row(DType dtype, int64_t count, uint64_t seed) {
        Bytes row(static_cast<size_t>(count) * size_of(dtype));
        for (int64_t i = 0; i < count; ++i) {
            const float value =
                static_cast<float>(random_normal(seed, 0, static_cast<uint64_t>(i)));
            const uint16_t half = float_to_bf16(value);
            std::memcpy(&row[static_cast<size_t>(i) * size_of(dtype)],
                        dtype == DType::f32 ? static_cast<const void*>(&value) : &half,
                        size_of(dtype));
        }
        return row;
    }

  private:
    static std::vector<Tensor> ends(const Tensor& tensor, size_t row_bytes) {
        const int64_t count = static_cast<int64_t>(row_bytes / size_of(tensor.dtype));
        return {tensor.slice(0, {count}), tensor.slice(tensor.count() - count, {count})};
    }

    const emulator::SettingsGuard guard_;
    std::unique_ptr<Backend> backend_;
    std::vector<void*> blocks_;
};

TEST_F(ProductionSizesTest, Swiglu) {
    constexpr int64_t width = 11008;
    const int64_t rows = kLimit / width + 3;
    const Bytes in = random_row(DType::bf16, 2 * width, 1),
                dout = random_row(DType::bf16, width, 2);
    const auto run = [&](int64_t n, bool ends) {
        const Tensor gate_up = take(DType::bf16, {n, 2 * width}),
                     out = take(DType::bf16, {n, width});
        put(gate_up, in);
        const auto forward = [&] { backend().swiglu_forward({gate_up, out}); };
        ends ? run_ends(forward) : forward();
        const Tensor gradient = take(DType::bf16, {n, width});
        put(gradient, dout);
        const auto backward = [&] { backend().swiglu_backward({gate_up, gradient, gate_up}); };
        ends ? run_ends(backward) : backward();
        return std::pair{out, gate_up};
    };
    const auto [small_out, small_in] = run(1, false);
    const auto [out, din] = run(rows, true);
    expect(out, all(small_out), "out");
    expect(din, all(small_in), "dgate_up");
}

TEST_F(ProductionSizesTest, RmsNormForward) {
    constexpr int64_t columns = 4096;
    const int64_t rows = kLimit / columns + 5;
    const Bytes x = random_row(DType::f32, columns, 1), gain = random_row(DType::bf16, columns, 2);
    const auto run = [&](int64_t n, bool ends) {
        RmsNormForward op;
        op.x = take(DType::f32, {n, columns});
        op.gain = take(DType::bf16, {columns});
        op.out = take(DType::bf16, {n, columns});
        op.rstd = take(DType::f32, {n});
        op.eps = 1e-5;
        put(op.x, x);
        put(op.gain, gain);
        const auto forward = [&] { backend().rmsnorm_forward(op); };
        ends ? run_ends(forward) : forward();
        return op;
    };
    const RmsNormForward small = run(1, false), large = run(rows, true);
    expect(large.out, all(small.out), "out");
    expect(large.rstd, all(small.rstd), "rstd");
}

TEST_F(ProductionSizesTest, LineNormalize) {
    constexpr int64_t columns = 4096;
    const Bytes row = random_row(DType::f32, columns, 1);
    const auto run = [&](int64_t n, bool ends) {
        const Tensor x = take(DType::f32, {n, columns});
        put(x, row);
        const auto normalize = [&] { backend().line_normalize({{&x, 1}, false, 1e-8}); };
        ends ? run_ends(normalize) : normalize();
        return x;
    };
    const Tensor small = run(1, false), large = run(kLimit / columns + 5, true);
    expect(large, all(small), "x");
}

TEST_F(ProductionSizesTest, Classifier) {
    for (const int64_t vocabulary : {int64_t{50304}, int64_t{131072}}) {
        const int64_t rows = kLimit / vocabulary + 7;
        const Bytes logits = random_row(DType::bf16, vocabulary, 1);
        const int32_t target = 77;
        const Bytes targets(reinterpret_cast<const char*>(&target),
                            reinterpret_cast<const char*>(&target + 1));
        const auto run = [&](int64_t n, bool ends) {
            const Classifier op{take(DType::bf16, {n, vocabulary}), take(DType::i32, {n}),
                                take(DType::f32, {n}), 0.5};
            put(op.logits, logits);
            put(op.targets, targets);
            const auto classify = [&] { backend().classifier(op); };
            ends ? run_ends(classify) : classify();
            return op;
        };
        const Classifier small = run(1, false), large = run(rows, true);
        expect(large.logits, all(small.logits), "gradient");
        expect(large.losses, all(small.losses), "loss");
    }
}

TEST_F(ProductionSizesTest, Rope) {
    constexpr int64_t size = 64, heads = 1, stride = 3 * heads * size;
    const int64_t batch = kLimit / stride + 9;
    const Bytes row = random_row(DType::bf16, stride, 1);
    const auto run = [&](int64_t n, bool ends) {
        const Tensor table = take(DType::f32, {1, size / 2, 2});
        put(table, random_row(DType::f32, size, 2));
        const Tensor qkv = take(DType::bf16, {n, 1, stride});
        put(qkv, row);
        const auto rotate = [&] { backend().rope({qkv, table, heads, heads, false}); };
        ends ? run_ends(rotate) : rotate();
        return std::pair{qkv.slice(0, {2 * size}), qkv.slice(n * stride - stride, {2 * size})};
    };
    const auto [small, same] = run(1, false);  // queries and keys
    const auto [first, last] = run(batch, true);
    expect(first, all(small), "first");
    expect(last, all(same), "last");
}

// One tile of queries a sequence, so that the first block has the first head of the first
// sequence and the last block the last head of the last one.
TEST_F(ProductionSizesTest, Attention) {
    constexpr int64_t positions = 16, size = 64;
    constexpr int heads = 1;
    constexpr int64_t stride = 3 * size;
    const int64_t batch = kLimit / (positions * stride) + 11;
    const Bytes in = random_row(DType::bf16, positions * stride, 1);
    const Bytes gradient = random_row(DType::bf16, positions * size, 2);
    const auto run = [&](int64_t n, bool ends) {
        AttentionForward forward{take(DType::bf16, {n, positions, stride}),
                                 take(DType::bf16, {n, positions, size}),
                                 take(DType::f32, {n, heads, positions}),
                                 heads,
                                 heads,
                                 {}};
        put(forward.qkv, in);
        forward.workspace = workspace(backend().workspace_bytes(forward));
        const auto attend = [&] { backend().attention_forward(forward); };
        ends ? run_ends(attend) : attend();
        AttentionBackward backward{forward.qkv,
                                   forward.out,
                                   forward.lse,
                                   take(DType::bf16, {n, positions, size}),
                                   take(DType::bf16, {n, positions, stride}),
                                   heads,
                                   heads,
                                   {}};
        put(backward.dout, gradient);
        backward.workspace = workspace(backend().workspace_bytes(backward));
        const auto back = [&] { backend().attention_backward(backward); };
        ends ? run_ends(back) : back();
        return backward;
    };
    const AttentionBackward small = run(1, false), large = run(batch, true);
    expect(large.out, all(small.out), "out");
    expect(large.lse, all(small.lse), "lse");
    expect(large.dqkv, all(small.dqkv), "dqkv");
}

TEST_F(ProductionSizesTest, OneTensorOfTheOptimizer) {
    const int64_t count = kLimit + 8 * 1000;
    const Bytes start = random_row(DType::f32, 64, 1), change = random_row(DType::f32, 64, 2);
    const Tensor rate = take(DType::f64, {1});
    const double value = 0.25;
    backend().copy_in(rate, &value);
    const std::vector<double> radius = {2.0}, decay = {0.1};
    const auto run = [&](int64_t n, bool ends) {
        const std::vector<Tensor> w = {take(DType::f32, {n})}, x = {take(DType::f32, {n})},
                                  copies = {take(DType::bf16, {n})};
        put(w[0], start);
        put(x[0], change);
        const auto update = [&] { backend().apply({w, x, copies, rate, 1.0, radius, decay}); };
        ends ? run_ends(update) : update();
        return std::pair{w[0], copies[0]};
    };
    const auto [small_w, small_copy] = run(64, false);
    const auto [w, copy] = run(count, true);
    expect(w, all(small_w), "weights");
    expect(copy, all(small_copy), "copy");
}

TEST_F(ProductionSizesTest, Conversion) {
    const int64_t count = kLimit + 8 * 1000;
    const Bytes row = random_row(DType::f32, 64, 1);
    const auto run = [&](int64_t n, bool ends) {
        const Tensor from = take(DType::f32, {n}), to = take(DType::bf16, {n});
        put(from, row);
        const auto convert = [&] { backend().copy(to, from); };
        ends ? run_ends(convert) : convert();
        return to;
    };
    const Tensor small = run(64, false), large = run(count, true);
    expect(large, all(small), "converted");
}

// Sides for tiles of 64 and of 128 rows; the first and the last matrix are the same.
TEST_F(ProductionSizesTest, SymmetricProducts) {
    for (const int64_t n : {16, 272}) {
        const int64_t k = 24;
        const Bytes x = random_row(DType::bf16, n * k, 1);
        const auto run = [&](int64_t batch, bool ends) {
            const Tensor a = take(DType::bf16, {batch, n, k}), d = take(DType::bf16, {batch, n, n});
            put(a, x);
            const auto multiply = [&] {
                cuda::symmetric_gemm_mma(
                    {DType::bf16, n, k, batch, a.data, a.data, nullptr, d.data}, nullptr);
            };
            ends ? run_ends(multiply) : multiply();
            return d;
        };
        const Tensor small = run(1, false), large = run(kLimit / (n * n) + 5, true);
        expect(large, all(small), "d");
    }
}

}  // namespace
}  // namespace lmo
