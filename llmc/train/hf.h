// Hugging Face's LlamaForCausalLM folders: config.json to and from our model configuration.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "llmc/model/llama.h"

namespace lmo {

// config.json of a checkpoint in `weights` type.
nlohmann::json to_hf_config(const LlamaConfig& config, DType weights);

// Reads FOLDER/config.json. Throws Error naming file, key and value for what this program does not
// have (another architecture, biases, scaled rotary positions, another activation).
LlamaConfig read_hf_config(const std::string& folder);

// Throws Error naming the keys in which a folder's model differs from a configured one (init.from).
void require_same_model(const LlamaConfig& found, const LlamaConfig& configured,
                        const std::string& folder);

}  // namespace lmo
