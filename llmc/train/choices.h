// Multiple choice in the format of HellaSwag: which ending of a text does a
// model find likeliest?
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "llmc/data/tokenizer.h"
#include "llmc/train/validation.h"

namespace lmo {

// A context with its endings; `label` is the right one's place. A row holds
// context and ending, cut at its start to what the model takes; `counts` are
// the tokens of each ending.
struct Question {
  std::vector<std::vector<int32_t>> rows;
  std::vector<int64_t> counts;
  int64_t label = 0;
};

// One question a line: {"ctx": "text", "endings": ["text", ...], "label": 0};
// other keys are left alone, and so are empty lines. The tokens of a row are
// those of ctx and those of " " + ending, the last length + 1 of them. Throws
// Error naming file and line, also for an ending of more than `length` tokens,
// and UsageError where the ids are not those of the model's vocabulary.
std::vector<Question> read_questions(const std::string &path,
                                     const Tokenizer &tokenizer,
                                     int64_t vocab_size, int64_t length);

// Shares of the questions whose right ending has the largest log-probability
// (accuracy), and the largest one per token of the ending (accuracy_norm). The
// first of equals counts as the largest.
struct ChoiceResult {
  double accuracy, accuracy_norm;
  int64_t examples;
};

// `tensors` and `model`: for one sequence of the longest row. Throws Error
// where a loss is not finite.
ChoiceResult evaluate_choices(Backend &backend, Llama &model,
                              const ParameterBuffer &weights,
                              const BatchTensors &tensors,
                              const std::vector<Question> &questions);

} // namespace lmo
