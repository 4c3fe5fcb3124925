// Multiple choice: what is read, what is refused, and who is right, against
// logits token by token.
#include "llmc/train/choices.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "llmc/core/error.h"
#include "tests/unit/tiny_llama.h"

namespace lmo {
namespace {

class Choices : public ::testing::Test {
protected:
  std::vector<Question> read(const std::string &text, int64_t length = 32) {
    const std::string path = ::testing::TempDir() + "choices.jsonl";
    std::ofstream(path) << text;
    return read_questions(path, *tokenizer, 256, length);
  }
  // What follows the path in the message.
  std::string error(const std::string &text, int64_t length = 32) {
    try {
      read(text, length);
    } catch (const Error &error) {
      const std::string what = error.what();
      return what.substr(what.find(".jsonl: ") + 8);
    }
    return "no error";
  }
  std::unique_ptr<Tokenizer> tokenizer = make_tokenizer("bytes");
};

std::vector<int32_t> bytes(const std::string &text) {
  return {text.begin(), text.end()};
}

TEST_F(Choices, ContextAndEndingsBecomeRows) {
  const auto questions = read(
      "{\"ind\": 3, \"ctx\": \"ab\", \"endings\": [\"c\", \"de\", \"f\", "
      "\"g\"], \"label\": 1}\n"
      "\n{\"ctx\": \"abcdef\", \"endings\": [\"x\", \"yz\"], \"label\": 0}",
      5);
  ASSERT_EQ(questions.size(), 2u);
  EXPECT_EQ(questions[0].rows[1], bytes("ab de"));
  EXPECT_EQ(questions[0].counts, (std::vector<int64_t>{2, 3, 2, 2}));
  EXPECT_EQ(questions[0].label, 1);
  EXPECT_EQ(questions[1].rows[0],
            bytes("cdef x")); // five tokens and what follows them
  EXPECT_EQ(questions[1].rows[1], bytes("def yz"));
}

TEST_F(Choices, ErrorsNameTheLine) {
  const std::string good = R"({"ctx": "a", "endings": ["b", "c"], "label": 0})";
  const auto second = [&](const std::string &line) {
    return error(good + "\n" + line);
  };
  EXPECT_EQ(error("\n \n"), "holds no questions");
  EXPECT_EQ(second(R"({"endings": ["b", "c"], "label": 0})"),
            "line 2: has no \"ctx\"");
  EXPECT_EQ(second(R"({"ctx": "a", "endings": ["b", "c"], "label": 2})"),
            "line 2: label: expected an integer from 0 to 1, found 2");
  EXPECT_EQ(second(R"({"ctx": "a", "endings": ["b", "c"], "label": "1"})"),
            "line 2: label: expected an integer from 0 to 1, found \"1\"");
  EXPECT_EQ(second(R"({"ctx": "a", "endings": ["b"], "label": 0})"),
            "line 2: endings: expected a list of at least two texts");
  EXPECT_EQ(second(R"({"ctx": "a", "endings": ["b", 7], "label": 0})"),
            "line 2: endings[1]: expected a text, found 7");
  EXPECT_EQ(second(R"({"ctx": "", "endings": ["b", "c"], "label": 0})"),
            "line 2: ctx: expected a text, found \"\"");
  EXPECT_EQ(second("[]"),
            "line 2: expected an object with ctx, endings and label");
  EXPECT_EQ(second(R"({"ctx": )").substr(0, 7), "line 2,");
  EXPECT_EQ(
      error(R"({"ctx": "a", "endings": ["b", "much too long"], "label": 0})",
            8),
      "line 1: endings[1]: has 14 tokens, the window takes 8");
  std::ofstream(::testing::TempDir() + "choices.jsonl") << good;
  EXPECT_THROW(read_questions(::testing::TempDir() + "choices.jsonl",
                              *tokenizer, 90, 32),
               UsageError); // 'a' is 97
}

// -log softmax(logits)[id]
double surprise(const std::vector<double> &logits, int32_t id) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double total = 0.0;
  for (double x : logits)
    total += std::exp(x - top);
  return top + std::log(total) - logits[static_cast<size_t>(id)];
}

std::string random_word(uint64_t seed) {
  std::string word;
  const uint64_t length = 1 + random_bits(seed, 0, 0) % 5;
  for (uint64_t i = 0; i < length; ++i) {
    word += static_cast<char>('a' + random_bits(seed, 1, i) % 26);
  }
  return word;
}

TEST_F(Choices, AccuraciesAreThoseOfTheLogits) {
  TinyLlama model({2, 2, 1, 16, 24, 256, 12, 100.0, 1e-5, 0.02, false}, kFp64,
                  1, false);
  model.set_weights(lively_weights(model.list, 4));
  std::string text;
  for (uint64_t i = 0; i < 60; ++i) {
    text += R"({"ctx": ")" + random_word(10 * i) + " " +
            random_word(10 * i + 1) + R"(", "endings": [)";
    for (uint64_t j = 0; j < 4; ++j) {
      text += (j ? ", \"" : "\"") + random_word(10 * i + 2 + j) + "\"";
    }
    text += R"(], "label": )" + std::to_string(i % 4) + "}\n";
  }
  const std::vector<Question> questions = read(text, 12);
  int right = 0, right_norm = 0;
  for (const Question &question : questions) {
    std::vector<double> losses, norms;
    for (size_t i = 0; i < 4; ++i) {
      const std::vector<int32_t> &row = question.rows[i];
      double loss = 0.0;
      for (size_t t = row.size() - static_cast<size_t>(question.counts[i]);
           t < row.size(); ++t) {
        const Ids seen{
            1, static_cast<int64_t>(t), {row.begin(), row.begin() + t}};
        loss += surprise(model.last_logits(seen), row[t]);
      }
      losses.push_back(loss);
      norms.push_back(loss / static_cast<double>(question.counts[i]));
    }
    const auto least = [](const std::vector<double> &v) {
      return std::min_element(v.begin(), v.end()) - v.begin();
    };
    right += least(losses) == question.label;
    right_norm += least(norms) == question.label;
  }
  const BatchTensors tensors(model.arena, 1, 12);
  const ChoiceResult result = evaluate_choices(
      *model.backend, model.llama, model.weights, tensors, questions);
  EXPECT_EQ(result.examples, 60);
  EXPECT_DOUBLE_EQ(result.accuracy, right / 60.0);
  EXPECT_DOUBLE_EQ(result.accuracy_norm, right_norm / 60.0);
  EXPECT_NE(right, right_norm); // the endings' lengths matter
  EXPECT_GT(std::min(right, right_norm), 0);
}

TEST_F(Choices, DamagedWeightsAreAnError) {
  TinyLlama model({1, 2, 1, 16, 24, 256, 12, 100.0, 1e-5, 0.02, true}, kFp32, 1,
                  false);
  std::vector<double> weights = lively_weights(model.list, 4);
  weights[static_cast<size_t>(model.list.offset(1))] = std::nan("");
  model.set_weights(weights);
  const BatchTensors tensors(model.arena, 1, 12);
  const auto questions =
      read(R"({"ctx": "a", "endings": ["b", "c"], "label": 0})", 12);
  EXPECT_THROW(evaluate_choices(*model.backend, model.llama, model.weights,
                                tensors, questions),
               Error);
}

} // namespace
} // namespace lmo
