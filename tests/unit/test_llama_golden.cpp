// The model against dev/reference/llama.py (PyTorch, float64): logits, losses, all gradients.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "llmc/io/safetensors.h"
#include "tests/unit/tiny_llama.h"

namespace lmo {
namespace {

struct Golden {
    explicit Golden(const std::string& name) : file("tests/data/llama_" + name + ".safetensors") {
        const std::vector<double> sizes = file.read("config", {8}), r = file.read("constants", {2});
        const auto at = [&](size_t i) { return static_cast<int64_t>(sizes[i]); };
        config = {at(0), at(1), at(2), at(3), at(4), at(5), at(6), r[0], r[1], 0.02, at(7) == 1};
        batch = file.find("tokens")->shape[0];
        list = llama_parameters(config);
        tokens = ids("tokens");
        targets = ids("targets");
    }
    Ids ids(const std::string& name) const {
        const std::vector<double> values = file.read(name, {batch, config.seq_len});
        return {batch, config.seq_len, {values.begin(), values.end()}};
    }
    std::vector<double> tensor(const std::string& prefix, const Parameter& p) const {
        std::vector<int64_t> shape;
        for (int axis = 0; axis < p.shape.rank(); ++axis) shape.push_back(p.shape[axis]);
        return file.read(prefix + p.name, shape);
    }
    std::vector<double> weights() const {
        std::vector<double> flat(static_cast<size_t>(list.buffer_length()), 0.0);
        for (int p = 0; p < list.size(); ++p) {
            const std::vector<double> values = tensor("", list[p]);
            std::copy(values.begin(), values.end(), flat.begin() + list.offset(p));
        }
        return flat;
    }

    SafetensorsFile file;
    LlamaConfig config;
    int64_t batch;
    ParameterList list;
    Ids tokens, targets;
};

// Largest |a - b| over the largest |b|.
double relative_error(const double* a, const std::vector<double>& b) {
    double error = 0.0, largest = 0.0;
    for (size_t i = 0; i < b.size(); ++i) {
        error = std::max(error, std::fabs(a[i] - b[i]));
        largest = std::max(largest, std::fabs(b[i]));
        if (std::isnan(a[i])) return INFINITY;
    }
    return largest > 0.0 ? error / largest : error;
}

struct Tolerance {
    double loss, gradient, logits;
};

void check(const std::string& name, const ModelPrecision& precision, const Tolerance& tolerance) {
    SCOPED_TRACE(name);
    const Golden golden(name);
    TinyLlama model(golden.config, precision, golden.batch, true, 1 << 20, 2);
    model.set_weights(golden.weights());
    const double loss = golden.file.read("loss", {1})[0];
    EXPECT_NEAR(model.forward_backward(golden.tokens, golden.targets), loss, tolerance.loss * loss);
    const std::vector<double> gradients = model.gradients();
    for (int p = 0; p < golden.list.size(); ++p) {
        const double error = relative_error(gradients.data() + golden.list.offset(p),
                                            golden.tensor("gradient.", golden.list[p]));
        EXPECT_LE(error, tolerance.gradient) << golden.list[p].name;
    }
    // Every position, as the last one of its prefix.
    const int64_t positions = golden.config.seq_len, vocabulary = golden.config.vocab_size;
    const auto all = golden.file.read("logits", {golden.batch, positions, vocabulary});
    for (int64_t t = 0; t < positions; ++t) {
        const auto row = golden.tokens.values.begin() + (golden.batch - 1) * positions;
        const auto logits = model.last_logits({1, t + 1, {row, row + t + 1}});
        const auto expected = all.begin() + ((golden.batch - 1) * positions + t) * vocabulary;
        const std::vector<double> wanted(expected, expected + vocabulary);
        EXPECT_LE(relative_error(logits.data(), wanted), tolerance.logits) << "position " << t;
    }
}

const char* const kCases[] = {"tied_mha", "untied_gqa", "one_token"};

TEST(LlamaGolden, Fp64) {
    for (const char* name : kCases) check(name, kFp64, {1e-12, 1e-10, 1e-12});
}

// In units of the type's rounding error u the same bounds hold for all lower precisions. On these
// cases plain loops are within 1 u (loss), 25 u (gradients) and 8 u (logits) of fp64 in fp32, and
// within 1 u, 70 u and 8 u in bf16, whose rounded weights are part of the error.
Tolerance in_roundings(double u) { return {4.0 * u, 96.0 * u, 32.0 * u}; }

TEST(LlamaGolden, Fp32) {
    for (const char* name : kCases) check(name, kFp32, in_roundings(0x1p-24));
}

TEST(LlamaGolden, Bf16) {
    for (const char* name : kCases) check(name, kBf16, in_roundings(0x1p-9));
}

TEST(LlamaGolden, Bf16Residual) {
    for (const char* name : kCases) check(name, kBf16Residual, in_roundings(0x1p-9));
}

// Ignored targets: their losses are zero, so the sum is that of the others.
TEST(LlamaGolden, LossIsTheSumOfTheTokenLossesTimesTheScale) {
    const Golden golden("tied_mha");
    TinyLlama model(golden.config, kFp64, golden.batch);
    model.set_weights(golden.weights());
    double sum = 0.0;
    for (double loss : golden.file.read("losses", {golden.batch, golden.config.seq_len}))
        sum += loss;
    EXPECT_NEAR(model.evaluate(golden.tokens, golden.targets, 0.125), 0.125 * sum, 1e-12 * sum);
}

}  // namespace
}  // namespace lmo
