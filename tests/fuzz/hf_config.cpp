// config.json of Hugging Face. Accepted means: our own config.json of that model is read as the same.
#include "llmc/train/hf.h"
#include "tests/fuzz/fuzz.h"

namespace lmo::fuzz {

bool hf_config(std::string_view input) {
    const std::string path = scratch("config.json");
    write("config.json", input);
    LlamaConfig model;
    if (!accepts([&] { model = read_hf_config(scratch_folder()); }, {path})) return false;
    require(model.head_size() >= 1 && model.head_size() * model.n_head == model.d_model,
            "heads that do not fill the width");
    write("config.json", to_hf_config(model, DType::f32).dump());
    const LlamaConfig again = read_hf_config(scratch_folder());
    require_same_model(again, model, scratch_folder());
    require(again.seq_len == model.seq_len && again.init_std == model.init_std, "another model");
    return true;
}

}  // namespace lmo::fuzz
