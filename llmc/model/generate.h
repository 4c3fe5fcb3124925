// Sampling of token ids from a model. Text is the caller's.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "llmc/model/llama.h"

namespace lmo {

struct SamplingConfig {
    double temperature = 1.0;  // 0: the most likely token
    int64_t top_k = 0;         // 0: all
    double top_p = 1.0;
    uint64_t seed = 0;
};

// Index drawn from softmax(logits / temperature), restricted to the top_k most likely and then to
// the smallest set of those with probability >= top_p. `draw` numbers the draw of this seed. Throws
// Error when a logit is not finite.
int32_t sample_token(const std::vector<float>& logits, const SamplingConfig& config, uint64_t draw);

// Extends `ids` by `count` tokens (the model sees the last seq_len of them), calling `on_token` for
// each. With config.keep_text a token costs a pass over one position as long as the text is not
// longer than seq_len, and always a pass over the whole window otherwise. ids must not be empty. tokens_on_device: int32, at least seq_len elements of scratch.
void generate(Backend& backend, Llama& model, const LlamaConfig& config,
              const ParameterBuffer& weights, std::vector<int32_t>& ids, int64_t count,
              const SamplingConfig& sampling, const Tensor& tokens_on_device,
              const std::function<void(int32_t)>& on_token);

}  // namespace lmo
