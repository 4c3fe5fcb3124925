// Sampling: which tokens may come, how often each does, and what a text repeats.
#include "llmc/model/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "llmc/core/error.h"
#include "tests/unit/tiny_llama.h"

namespace lmo {
namespace {

SamplingConfig sampling(double temperature, int64_t top_k, double top_p, uint64_t seed = 7) {
    return {temperature, top_k, top_p, seed};
}

// Draws of each token; the expected probabilities are compared at five standard deviations.
void expect_distribution(const std::vector<float>& logits, const SamplingConfig& config,
                         const std::vector<double>& probabilities) {
    const int draws = 20000;
    std::vector<int> counts(logits.size(), 0);
    for (int i = 0; i < draws; ++i) {
        ++counts[static_cast<size_t>(sample_token(logits, config, static_cast<uint64_t>(i)))];
    }
    for (size_t id = 0; id < logits.size(); ++id) {
        const double p = probabilities[id], deviation = std::sqrt(draws * p * (1.0 - p));
        EXPECT_NEAR(counts[id], draws * p, 5.0 * deviation) << "token " << id;
    }
}

std::vector<float> logs(const std::vector<double>& probabilities) {
    std::vector<float> logits;  // the offset must not matter
    for (double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + 30.0));
    return logits;
}

const std::vector<double> kProbabilities = {0.1, 0.4, 0.05, 0.25, 0.2};

TEST(SampleToken, ZeroTemperatureTakesTheFirstOfTheMostLikely) {
    EXPECT_EQ(sample_token({1.0f, 3.0f, -2.0f, 3.0f}, sampling(0.0, 0, 1.0), 0), 1);
    EXPECT_EQ(sample_token({-5.0f}, sampling(0.0, 0, 1.0), 0), 0);
    EXPECT_EQ(sample_token({1.0f, 3.0f, 3.5f}, sampling(1e-300, 0, 1.0), 0), 2);
}

TEST(SampleToken, FollowsTheSoftmax) {
    expect_distribution(logs(kProbabilities), sampling(1.0, 0, 1.0), kProbabilities);
    // Temperature 1/2 squares the probabilities: sum of squares 0.275.
    expect_distribution(logs(kProbabilities), sampling(0.5, 0, 1.0),
                        {0.01 / 0.275, 0.16 / 0.275, 0.0025 / 0.275, 0.0625 / 0.275, 0.04 / 0.275});
}

TEST(SampleToken, TopKKeepsTheMostLikely) {
    expect_distribution(logs(kProbabilities), sampling(1.0, 2, 1.0),
                        {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0});
    expect_distribution(logs(kProbabilities), sampling(1.0, 1, 1.0), {0, 1, 0, 0, 0});
    expect_distribution(logs(kProbabilities), sampling(1.0, 99, 1.0), kProbabilities);
    expect_distribution({1, 1, 1, 1}, sampling(1.0, 2, 1.0), {0.5, 0.5, 0, 0});  // ties: low ids
}

TEST(SampleToken, TopPKeepsTheSmallestSetThatReachesIt) {
    expect_distribution(logs(kProbabilities), sampling(1.0, 0, 0.3), {0, 1, 0, 0, 0});
    expect_distribution(logs(kProbabilities), sampling(1.0, 0, 0.6),
                        {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0});
    expect_distribution(logs(kProbabilities), sampling(1.0, 0, 0.8),
                        {0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85});
    expect_distribution(logs(kProbabilities), sampling(1.0, 0, 1e-9), {0, 1, 0, 0, 0});
    // After top-k: of 0.4 and 0.25 the first has 0.615 of what is left.
    expect_distribution(logs(kProbabilities), sampling(1.0, 2, 0.6), {0, 1, 0, 0, 0});
}

TEST(SampleToken, IsAFunctionOfSeedAndDraw) {
    const std::vector<float> flat(1000, 0.0f);
    const auto draw = [&](uint64_t seed, uint64_t index) {
        return sample_token(flat, sampling(1.0, 0, 1.0, seed), index);
    };
    EXPECT_EQ(draw(1, 5), draw(1, 5));
    EXPECT_NE(draw(1, 5), draw(2, 5));
    EXPECT_NE(draw(1, 5), draw(1, 6));
}

TEST(SampleToken, RefusesLogitsThatAreNotFinite) {
    for (float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
        for (double temperature : {0.0, 1.0}) {
            try {
                sample_token({0.0f, 1.0f, bad}, sampling(temperature, 0, 1.0), 0);
                FAIL() << "no error for " << bad;
            } catch (const Error& error) {
                EXPECT_NE(std::string(error.what()).find("logit of token 2"), std::string::npos)
                    << error.what();
            }
        }
    }
}

class Generate : public ::testing::Test {
  protected:
    Generate() : model({2, 2, 1, 16, 24, 40, 6, 100.0, 1e-5, 0.02, true}, kFp32, 1, false) {
        model.set_weights(lively_weights(model.list, 4));
    }
    std::vector<int32_t> run(std::vector<int32_t> ids, int64_t count,
                             const SamplingConfig& config) {
        heard.clear();
        generate(*model.backend, model.llama, model.config, model.weights, ids, count, config,
                 model.tokens, [&](int32_t id) { heard.push_back(id); });
        return ids;
    }
    TinyLlama model;
    std::vector<int32_t> heard;
};

TEST_F(Generate, GreedyFollowsTheModelAndItsWindowSlides) {
    const std::vector<int32_t> prompt = {3, 1, 4, 1};
    const std::vector<int32_t> ids = run(prompt, 12, sampling(0.0, 0, 1.0));
    ASSERT_EQ(ids.size(), 16u);
    EXPECT_TRUE(std::equal(prompt.begin(), prompt.end(), ids.begin()));
    EXPECT_EQ(heard, std::vector<int32_t>(ids.begin() + 4, ids.end()));
    for (size_t end = 4; end < ids.size(); ++end) {
        const size_t window = std::min<size_t>(end, 6);
        const std::vector<int32_t> seen(ids.begin() + static_cast<ptrdiff_t>(end - window),
                                        ids.begin() + static_cast<ptrdiff_t>(end));
        const auto logits = model.last_logits({1, static_cast<int64_t>(window), seen});
        EXPECT_EQ(ids[end], std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
}

LlamaConfig keeping(LlamaConfig config) {
    config.keep_text = true;
    return config;
}

// Position after position over the kept keys and values, against the whole prefix each time.
TEST(KeptText, LogitsAreThoseOfTheWholeText) {
    const ModelPrecision types[] = {kFp64, kFp32, kBf16};
    const double tolerances[] = {1e-12, 1e-5, 0.04};  // of the largest logit
    for (const int64_t kv_heads : {1, 2, 4}) {
        for (const bool tied : {true, false}) {
            for (int i = 0; i < 3; ++i) {
                const LlamaConfig config{3, 4, kv_heads, 32, 48, 40, 24, 100.0, 1e-5, 0.02, tied};
                TinyLlama whole(config, types[i], 1, false);
                TinyLlama kept(keeping(config), types[i], 1, false);
                whole.set_weights(lively_weights(whole.list, 4));
                kept.set_weights(lively_weights(kept.list, 4));
                const Ids text = random_ids(1, 24, 40, 5);
                const auto prefix = [&](int64_t count) {
                    return Ids{1, count, {text.values.begin(), text.values.begin() + count}};
                };
                for (int64_t length = 3; length <= 24; ++length) {
                    const std::vector<double> expected = whole.last_logits(prefix(length));
                    const std::vector<double> actual =
                        length == 3 ? kept.last_logits(prefix(3))
                                    : kept.next_logits(text.values[length - 1], length - 1);
                    double largest = 0.0, difference = 0.0;
                    for (size_t v = 0; v < expected.size(); ++v) {
                        largest = std::max(largest, std::abs(expected[v]));
                        difference = std::max(difference, std::abs(expected[v] - actual[v]));
                    }
                    EXPECT_LE(difference, tolerances[i] * largest)
                        << to_string(types[i].compute) << " K " << kv_heads << " T " << length;
                }
            }
        }
    }
}

// Up to the end of the context, and beyond it, where the window slides.
TEST_F(Generate, KeptTextGivesTheSameTokens) {
    TinyLlama kept(keeping(model.config), kFp32, 1, false);
    kept.set_weights(lively_weights(kept.list, 4));
    const std::vector<int32_t> prompts[] = {
        {3}, {3, 1, 4}, {3, 1, 4, 1, 5, 9}, {3, 1, 4, 1, 5, 9, 2}};
    for (const std::vector<int32_t>& prompt : prompts) {
        for (const SamplingConfig& config : {sampling(0.0, 0, 1.0), sampling(1.0, 0, 1.0)}) {
            std::vector<int32_t> ids = prompt;
            generate(*kept.backend, kept.llama, kept.config, kept.weights, ids, 12, config,
                     kept.tokens, {});
            EXPECT_EQ(ids, run(prompt, 12, config));
        }
    }
}

TEST_F(Generate, SeedsDecide) {
    const SamplingConfig one = sampling(2.0, 0, 1.0, 1), two = sampling(2.0, 0, 1.0, 2);
    EXPECT_EQ(run({5}, 20, one), run({5}, 20, one));
    EXPECT_NE(run({5}, 20, one), run({5}, 20, two));
    // Every draw has its own number: the text is not one token over and over.
    const std::vector<int32_t> ids = run({5}, 20, one);
    EXPECT_GT(std::count_if(ids.begin(), ids.end(), [&](int32_t id) { return id != ids[1]; }), 1);
}

TEST_F(Generate, DamagedWeightsAreAnError) {
    std::vector<double> weights = lively_weights(model.list, 4);
    weights[static_cast<size_t>(model.list.offset(1))] = std::nan("");  // a gain
    model.set_weights(weights);
    EXPECT_THROW(run({5}, 1, sampling(1.0, 0, 1.0)), Error);
}

}  // namespace
}  // namespace lmo
