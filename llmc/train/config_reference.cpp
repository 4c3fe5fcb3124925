// The reference page of the configuration, written from the schema.

#include "llmc/train/config.h"
#include "llmc/train/schema.h"

namespace lmo {

namespace {

constexpr const char* kIntroduction = R"(# Configuration

This page is generated from the schema in `llmc/train/schema.cpp` (`make docs`).

A configuration is one JSON file (no comments). `include`, a path or a list of paths relative to the
file that names them, is merged first, then the file itself, then each `--set key.path=value`.
Objects merge key by key, a later value wins, `null` deletes a key; `--set` with an object replaces it
whole. The value of `--set` is JSON, or else a string. A key that is unknown, or that the chosen type
does not use, is an error. The run folder's `run_config.json` holds every key with its value.
)";

constexpr const char* kGroups = R"(
## optimizer.groups

A list of parameter groups; a parameter belongs to the first group that matches it. A preset file is
`{"description": "...", "groups": [...]}`. The gradient goes through momentum, norm, radius and decay;
a stage that is left out does nothing. `match` needs a role or a name.
)";

std::string row(const Key& key) {
    std::string text = "| `" + key.path + "` | " + key.accepts.expected() + " | " +
                       key.fallback.text + " | " + key.meaning;
    if (!key.when.key.empty()) {
        text += " (with `" + key.when.key + "`";
        for (size_t i = 0; i < key.when.values.size(); ++i) {
            text += (i == 0 ? " " : ", ") + key.when.values[i];
        }
        text += ")";
    }
    return text + " |\n";
}

constexpr const char* kTableHead = "\n| key | value | default | meaning |\n|---|---|---|---|\n";

}  // namespace

std::string config_reference() {
    std::string page = kIntroduction, section;
    for (const Key& key : config_keys()) {
        const std::string of_key = key.path.substr(0, key.path.find('.'));
        if (of_key != section) page += "\n## " + of_key + "\n" + kTableHead;
        section = of_key;
        page += row(key);
    }
    page += kGroups;
    page += kTableHead;
    for (const Key& key : group_keys()) page += row(key);
    return page;
}

}  // namespace lmo
