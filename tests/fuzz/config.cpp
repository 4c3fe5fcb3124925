// Configurations: x.json with the files it includes and a preset file. Accepted means: the resolved
// configuration, written and read again, is the same.
#include "llmc/train/config.h"

#include "llmc/train/json_merge.h"
#include "tests/fuzz/fuzz.h"

namespace lmo::fuzz {

bool config(std::string_view input) {
    const auto files = split_files(input, "x.json", {"x.json", "a.json", "b.json", "preset.json"});
    for (const char* name : {"a.json", "b.json", "preset.json"}) {
        if (files.count(name) == 0) write(name, "{}");
    }
    for (const auto& [name, text] : files) write(name, text);
    Config config;
    // Of the other uses one is enough for each input.
    const ConfigUse other = input.size() % 2 == 0 ? ConfigUse::schedule : ConfigUse::model;
    accepts([&] { config = load_config(scratch("x.json"), {}, other); }, {".json", "preset"});
    // A preset of the program itself may be named instead of a file.
    const bool accepted = accepts(
        [&] { config = load_config(scratch("x.json"), {}, ConfigUse::train); }, {".json", "preset"});
    if (!accepted) return false;
    const Json text = parse_json<Json>(config.resolved.dump(2), "resolved");
    const Config again = config_from_json(text, "resolved", ConfigUse::train);
    require(again.resolved == config.resolved, "the resolved configuration is read as another one");
    require(resume_conflicts(text, config.resolved).empty(), "a conflict with itself");
    require(config.run.dir.find('\0') == std::string::npos, "NUL in run.dir");
    return true;
}

}  // namespace lmo::fuzz
