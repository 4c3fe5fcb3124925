// The loss of a model on held-out tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "llmc/data/stream.h"
#include "llmc/dist/ranks.h"
#include "llmc/model/llama.h"

namespace lmo {

// Tensors that carry one batch and its loss between host and device.
struct BatchTensors {
    Tensor tokens, targets;  // [B, T] int32
    Tensor loss;             // fp64 scalar
    BatchTensors(Arena& arena, int64_t batch, int64_t length);
};

// The sum of the token losses of one batch [sequences, length] that lies in host memory; targets of
// -1 are not counted.
double batch_loss(Backend& backend, Llama& model, const ParameterBuffer& weights,
                  const BatchTensors& tensors, const std::vector<int32_t>& inputs,
                  const std::vector<int32_t>& targets, int64_t sequences, int64_t length);

struct ValidationResult {
    double loss;  // nats per token
    int64_t tokens;
};

// Mean loss over `batches` batches of `batch` sequences of the set (fewer when it is smaller), the
// same ones at every call: the first of its epoch 0. The ranks take turns with micro-batches of
// `micro_batch` sequences.
ValidationResult validate(Backend& backend, Llama& model, const ParameterBuffer& weights,
                          const BatchTensors& tensors, SampleStream& samples, int64_t batch,
                          int64_t batches, int64_t micro_batch, Ranks& ranks);

// Mean loss over every token of a file but its first, in windows of `length` tokens one after
// another (the last one may be shorter), `batch` windows at a time. Throws Error for an id >=
// vocab_size.
ValidationResult evaluate_file(Backend& backend, Llama& model, const ParameterBuffer& weights,
                               const BatchTensors& tensors, const TokenFile& file, int64_t batch,
                               int64_t length, int64_t vocab_size);

}  // namespace lmo
