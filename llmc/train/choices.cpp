#include "llmc/train/choices.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "llmc/core/error.h"
#include "llmc/core/json.h"
#include "llmc/io/files.h"

namespace lmo {

using nlohmann::json;

namespace {

// Turns one line of a file into a question; `line` counts from 1.
class LineReader {
public:
  LineReader(const std::string &path, const Tokenizer &tokenizer,
             int64_t vocab_size, int64_t length)
      : path_(path), tokenizer_(tokenizer), vocab_size_(vocab_size),
        length_(length) {}

  Question read(const std::string &text, int64_t line) {
    line_ = line;
    const json object = parse(text);
    if (!object.is_object())
      fail("expected an object with ctx, endings and label");
    const json &endings = value(object, "endings");
    if (!endings.is_array() || endings.size() < 2)
      fail("endings: expected a list of at least two texts");
    const json &label = value(object, "label");
    const int64_t last = static_cast<int64_t>(endings.size()) - 1;
    if (!label.is_number_integer() || label < 0 || label > last) {
      fail("label: expected an integer from 0 to " + std::to_string(last) +
           ", found " + value_text(label));
    }
    Question question;
    question.label = label.get<int64_t>();
    const std::vector<int32_t> context =
        encode(value(object, "ctx"), "ctx", "");
    for (size_t i = 0; i < endings.size(); ++i) {
      add_row(question, context, endings[i],
              "endings[" + std::to_string(i) + "]");
    }
    return question;
  }

private:
  [[noreturn]] void fail(const std::string &what) const {
    throw Error(path_ + ": line " + std::to_string(line_) + ": " + what);
  }
  // Positions in messages are those of the file: the lines before become empty
  // ones.
  json parse(const std::string &text) const {
    try {
      return parse_json<json>(text, path_);
    } catch (const Error &) {
      return parse_json<json>(
          std::string(static_cast<size_t>(line_ - 1), '\n') + text, path_);
    }
  }
  const json &value(const json &object, const char *key) const {
    const auto found = object.find(key);
    if (found == object.end())
      fail(std::string("has no \"") + key + "\"");
    return *found;
  }
  std::vector<int32_t> encode(const json &text, const std::string &key,
                              const std::string &before) const {
    if (!text.is_string() || text.get_ref<const std::string &>().empty()) {
      fail(key + ": expected a text, found " + value_text(text));
    }
    return encode_prompt(
        tokenizer_, before + text.get_ref<const std::string &>(), vocab_size_,
        path_ + ": line " + std::to_string(line_) + ": " + key);
  }
  void add_row(Question &question, const std::vector<int32_t> &context,
               const json &text, const std::string &key) const {
    const std::vector<int32_t> ending = encode(text, key, " ");
    const int64_t count = static_cast<int64_t>(ending.size());
    if (count > length_) {
      fail(key + ": has " + std::to_string(count) +
           " tokens, the window takes " + std::to_string(length_));
    }
    std::vector<int32_t> row = context;
    row.insert(row.end(), ending.begin(), ending.end());
    const int64_t excess = static_cast<int64_t>(row.size()) - (length_ + 1);
    if (excess > 0)
      row.erase(row.begin(), row.begin() + excess);
    question.rows.push_back(std::move(row));
    question.counts.push_back(count);
  }

  const std::string &path_;
  const Tokenizer &tokenizer_;
  int64_t vocab_size_, length_, line_ = 0;
};

size_t smallest(const std::vector<double> &values) {
  return static_cast<size_t>(std::min_element(values.begin(), values.end()) -
                             values.begin());
}

} // namespace

std::vector<Question> read_questions(const std::string &path,
                                     const Tokenizer &tokenizer,
                                     int64_t vocab_size, int64_t length) {
  std::istringstream file(read_file(path));
  LineReader reader(path, tokenizer, vocab_size, length);
  std::vector<Question> questions;
  std::string text;
  for (int64_t line = 1; std::getline(file, text); ++line) {
    if (text.find_first_not_of(" \t\r") == std::string::npos)
      continue;
    questions.push_back(reader.read(text, line));
  }
  if (questions.empty())
    throw Error(path + ": holds no questions");
  return questions;
}

ChoiceResult evaluate_choices(Backend &backend, Llama &model,
                              const ParameterBuffer &weights,
                              const BatchTensors &tensors,
                              const std::vector<Question> &questions) {
  int64_t right = 0, right_norm = 0;
  for (const Question &question : questions) {
    std::vector<double> losses, norms;
    for (size_t i = 0; i < question.rows.size(); ++i) {
      const std::vector<int32_t> &row = question.rows[i];
      const std::vector<int32_t> inputs(row.begin(), row.end() - 1);
      std::vector<int32_t> targets(row.begin() + 1, row.end());
      std::fill(targets.begin(), targets.end() - question.counts[i],
                -1); // the context's
      losses.push_back(batch_loss(backend, model, weights, tensors, inputs,
                                  targets, 1,
                                  static_cast<int64_t>(inputs.size())));
      if (!std::isfinite(losses.back())) {
        throw Error("the loss is not finite; the weights are damaged");
      }
      norms.push_back(losses.back() / static_cast<double>(question.counts[i]));
    }
    right += smallest(losses) == static_cast<size_t>(question.label);
    right_norm += smallest(norms) == static_cast<size_t>(question.label);
  }
  const int64_t examples = static_cast<int64_t>(questions.size());
  const double count = static_cast<double>(examples);
  return {static_cast<double>(right) / count,
          static_cast<double>(right_norm) / count, examples};
}

} // namespace lmo
