#include "llmc/train/hf.h"

#include "llmc/core/error.h"
#include "llmc/core/json.h"
#include "llmc/io/files.h"

namespace lmo {

using nlohmann::json;

json to_hf_config(const LlamaConfig& config, DType weights) {
    const char* type = weights == DType::bf16  ? "bfloat16"
                       : weights == DType::f64 ? "float64"
                                               : "float32";
    return {{"architectures", {"LlamaForCausalLM"}},
            {"model_type", "llama"},
            {"hidden_act", "silu"},
            {"hidden_size", config.d_model},
            {"intermediate_size", config.d_ff},
            {"num_hidden_layers", config.n_layer},
            {"num_attention_heads", config.n_head},
            {"num_key_value_heads", config.n_kv_head},
            {"head_dim", config.head_size()},
            {"vocab_size", config.vocab_size},
            {"max_position_embeddings", config.seq_len},
            {"rms_norm_eps", config.norm_eps},
            {"rope_theta", config.rope_theta},
            {"initializer_range", config.init_std},
            {"tie_word_embeddings", config.tie_embeddings},
            {"attention_bias", false},
            {"mlp_bias", false},
            {"attention_dropout", 0.0},
            {"bos_token_id", nullptr},
            {"eos_token_id", nullptr},
            {"pad_token_id", nullptr},
            {"torch_dtype", type},
            {"use_cache", true}};
}

namespace {

constexpr int64_t kMaxSize = 1 << 24;    // products of two sizes then fit an integer
constexpr int64_t kMaxLayers = 1 << 16;  // the list of parameters is made before memory is counted

// One config.json, with errors that name it.
class HfConfig {
  public:
    explicit HfConfig(const std::string& path)
        : path_(path),
          json_(parse_json<json>(read_file(path, kMaxJsonBytes), path + ": is not valid JSON")) {
        if (!json_.is_object()) fail("is not a JSON object");
    }

    [[noreturn]] void fail(const std::string& what) const { throw Error(path_ + ": " + what); }

    bool given(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
    const json& operator[](const char* key) const { return json_[key]; }

    int64_t size(const char* key, int64_t fallback = 0, int64_t most = kMaxSize) const {
        if (!given(key)) {
            if (fallback > 0) return fallback;
            fail(std::string("key \"") + key + "\" is missing");
        }
        const json& value = json_[key];
        if (!value.is_number_integer() || value.get<int64_t>() < 1 ||
            value.get<int64_t>() > most) {
            fail(std::string("key \"") + key + "\": expected a positive integer, at most " +
                 std::to_string(most) + ", found " + value_text(value));
        }
        return value.get<int64_t>();
    }

    double positive(const json& where, const char* key, double fallback) const {
        if (!where.contains(key) || where[key].is_null()) return fallback;
        if (!where[key].is_number() || where[key].get<double>() <= 0) {
            fail(std::string("key \"") + key + "\": expected a positive number, found " +
                 value_text(where[key]));
        }
        return where[key].get<double>();
    }
    double positive(const char* key, double fallback) const {
        return positive(json_, key, fallback);
    }

    bool flag(const char* key, bool fallback) const {
        if (!given(key)) return fallback;
        if (!json_[key].is_boolean()) {
            fail(std::string("key \"") + key + "\": expected true or false, found " +
                 value_text(json_[key]));
        }
        return json_[key].get<bool>();
    }

    // A feature that we do not have must be absent or have its plain value.
    void require(const char* key, const json& plain) const {
        if (given(key) && json_[key] != plain) {
            fail(std::string("key \"") + key + "\" is " + value_text(json_[key]) +
                 "; this program supports only " + value_text(plain));
        }
    }

  private:
    std::string path_;
    json json_;
};

// rope_theta stands at the top or, in newer files, in "rope_parameters".
double read_rope_theta(const HfConfig& file) {
    double theta = file.positive("rope_theta", 10000.0);
    for (const char* key : {"rope_parameters", "rope_scaling"}) {
        if (!file.given(key)) continue;
        const json& rope = file[key];
        if (!rope.is_object()) file.fail(std::string("key \"") + key + "\" is not an object");
        const json type = rope.contains("rope_type") ? rope["rope_type"]
                          : rope.contains("type")    ? rope["type"]
                                                     : json("default");
        if (type != "default") {
            file.fail(std::string("key \"") + key + "\": rotary scaling " + value_text(type) +
                      " is not supported, only \"default\"");
        }
        theta = file.positive(rope, "rope_theta", theta);
    }
    return theta;
}

}  // namespace

LlamaConfig read_hf_config(const std::string& folder) {
    const HfConfig file(folder + "/config.json");
    file.require("model_type", "llama");
    file.require("hidden_act", "silu");
    file.require("attention_bias", false);
    file.require("mlp_bias", false);
    LlamaConfig config;
    config.n_layer = file.size("num_hidden_layers", 0, kMaxLayers);
    config.n_head = file.size("num_attention_heads");
    config.n_kv_head = file.size("num_key_value_heads", config.n_head);
    config.d_model = file.size("hidden_size");
    config.d_ff = file.size("intermediate_size");
    config.vocab_size = file.size("vocab_size");
    config.seq_len = file.size("max_position_embeddings", 2048);
    config.rope_theta = read_rope_theta(file);
    config.norm_eps = file.positive("rms_norm_eps", 1e-6);
    config.init_std = file.positive("initializer_range", 0.02);
    config.tie_embeddings = file.flag("tie_word_embeddings", false);
    if (config.d_model % config.n_head || config.n_head % config.n_kv_head) {
        file.fail(
            "num_attention_heads must divide hidden_size, num_key_value_heads must divide "
            "num_attention_heads");
    }
    if (config.head_size() % 2) file.fail("the head size must be even for rotary positions");
    file.require("head_dim", config.head_size());
    return config;
}

void require_same_model(const LlamaConfig& found, const LlamaConfig& configured,
                        const std::string& folder) {
    std::string differences;
    const auto compare = [&](const char* key, auto there, auto here) {
        if (there == here) return;
        differences += std::string("\n  model.") + key + ": " + json(there).dump() + " there, " +
                       json(here).dump() + " configured";
    };
    compare("n_layer", found.n_layer, configured.n_layer);
    compare("n_head", found.n_head, configured.n_head);
    compare("n_kv_head", found.n_kv_head, configured.n_kv_head);
    compare("d_model", found.d_model, configured.d_model);
    compare("d_ff", found.d_ff, configured.d_ff);
    compare("vocab_size", found.vocab_size, configured.vocab_size);
    compare("rope_theta", found.rope_theta, configured.rope_theta);
    compare("norm_eps", found.norm_eps, configured.norm_eps);
    compare("tie_embeddings", found.tie_embeddings, configured.tie_embeddings);
    if (differences.empty()) return;
    throw Error("init.from: the model in " + folder + " is not the configured one:" + differences);
}

}  // namespace lmo
