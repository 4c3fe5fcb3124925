#include "llmc/train/validation.h"

#include <algorithm>

#include "llmc/core/error.h"

namespace lmo {

BatchTensors::BatchTensors(Arena& arena, int64_t batch, int64_t length)
    : tokens(arena.take("batch", DType::i32, {batch, length})),
      targets(arena.take("batch", DType::i32, {batch, length})),
      loss(arena.take("batch", DType::f64, {1})) {}

double batch_loss(Backend& backend, Llama& model, const ParameterBuffer& weights,
                  const BatchTensors& tensors, const std::vector<int32_t>& inputs,
                  const std::vector<int32_t>& targets, int64_t sequences, int64_t length) {
    const Tensor tokens = tensors.tokens.slice(0, {sequences, length});
    const Tensor labels = tensors.targets.slice(0, {sequences, length});
    backend.copy_in(tokens, inputs.data());
    backend.copy_in(labels, targets.data());
    backend.zero(tensors.loss);
    model.evaluate(weights, tokens, labels, 1.0, tensors.loss);
    double loss = 0.0;
    backend.copy_out(&loss, tensors.loss);
    return loss;
}

ValidationResult validate(Backend& backend, Llama& model, const ParameterBuffer& weights,
                          const BatchTensors& tensors, SampleStream& samples, int64_t batch,
                          int64_t batches, int64_t micro_batch, Ranks& ranks) {
    const int64_t length = samples.dataset().sequence_length();
    // Divided, as the product of large settings does not fit an integer.
    const int64_t all = samples.epoch_length();
    const int64_t total = batches > all / batch ? all : batch * batches;
    std::vector<int32_t> inputs(micro_batch * length), targets(micro_batch * length);
    ValidationResult result{0.0, total * length};
    for (int64_t first = ranks.rank() * micro_batch; first < total;
         first += ranks.size() * micro_batch) {
        const int64_t count = std::min(micro_batch, total - first);
        for (int64_t i = 0; i < count; ++i) {
            samples.copy(first + i, &inputs[i * length], &targets[i * length]);
        }
        result.loss += batch_loss(backend, model, weights, tensors, inputs, targets, count, length);
    }
    ranks.sum(&result.loss, 1, "validation loss");
    result.loss /= static_cast<double>(result.tokens);
    return result;
}

ValidationResult evaluate_file(Backend& backend, Llama& model, const ParameterBuffer& weights,
                               const BatchTensors& tensors, const TokenFile& file, int64_t batch,
                               int64_t length, int64_t vocab_size) {
    const int64_t predictions = file.size() - 1;
    if (predictions < 1) {
        throw Error(file.path() + ": holds " + std::to_string(file.size()) +
                    " tokens; a loss needs two");
    }
    for (int64_t i = 0; i < file.size(); ++i) {
        if (file.tokens()[i] >= vocab_size) {
            throw Error(file.path() + ": token " + std::to_string(i) + " has id " +
                        std::to_string(file.tokens()[i]) + ", the model's vocabulary has " +
                        std::to_string(vocab_size));
        }
    }
    std::vector<int32_t> inputs, targets;
    ValidationResult result{0.0, predictions};
    for (int64_t first = 0; first < predictions;) {
        // Full windows, as many as fit in a batch; at the end one shorter window alone.
        const int64_t left = predictions - first;
        const int64_t window = std::min(length, left);
        const int64_t count = window < length ? 1 : std::min(batch, left / length);
        inputs.assign(file.tokens() + first, file.tokens() + first + count * window);
        targets.assign(file.tokens() + first + 1, file.tokens() + first + 1 + count * window);
        result.loss += batch_loss(backend, model, weights, tensors, inputs, targets, count, window);
        first += count * window;
    }
    result.loss /= static_cast<double>(predictions);
    return result;
}

}  // namespace lmo
