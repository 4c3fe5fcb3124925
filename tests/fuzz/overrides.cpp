// --set texts, one a line, on top of a complete configuration.
#include <utility>

#include "llmc/train/config.h"
#include "tests/fuzz/fuzz.h"

namespace lmo::fuzz {

bool overrides(std::string_view input) {
    write("base.json", R"({"run": {"steps": 100},
        "model": {"n_layer": 2, "n_head": 4, "d_model": 32, "d_ff": 64, "vocab_size": 256,
                  "seq_len": 16},
        "data": {"train": "t.bin", "val": ["v1.bin", "v2.bin"]}, "batch": {"sequences": 8},
        "optimizer": {"preset": "muon", "lr": 0.001}})");
    std::vector<std::string> texts;
    std::string line;
    for (const char character : input) {
        if (character == '\0') continue;  // no argument holds one
        if (character != '\n') line += character;
        if (character == '\n') texts.push_back(std::exchange(line, ""));
    }
    if (!line.empty()) texts.push_back(line);
    Config config;
    const bool accepted = accepts(
        [&] { config = load_config(scratch("base.json"), texts, ConfigUse::train); },
        {"--set", "base.json", "preset"});
    if (!accepted) return false;
    const Config again = config_from_json(config.resolved, "resolved", ConfigUse::train);
    require(again.resolved == config.resolved, "the resolved configuration is read as another one");
    return true;
}

}  // namespace lmo::fuzz
