// Hostile files for the readers. A target takes bytes that anybody may have written and drives the
// real reader with them; it returns whether the reader accepted them, and throws std::logic_error
// where a promise of the reader is broken. Anything but lmo::Error that comes out of a reader is a
// finding too. `make fuzz` runs the targets under libFuzzer; the unit tests run them over
// tests/fuzz/corpus.
#pragma once

#include <functional>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>

namespace lmo::fuzz {

// tests/fuzz/NAME.cpp each.
bool config(std::string_view input);      // config JSON with includes and a preset file
bool overrides(std::string_view input);   // --set texts, one a line
bool safetensors(std::string_view input);
bool shards(std::string_view input);      // model.safetensors.index.json
bool checkpoint(std::string_view input);  // manifest.json, state.json
bool tokens(std::string_view input);      // token files
bool vocabulary(std::string_view input);  // tokenizers
bool hf_config(std::string_view input);   // config.json of Hugging Face
bool metrics(std::string_view input);     // metrics.jsonl of a run that goes on

struct Target {
    const char* name;
    bool (*run)(std::string_view input);
};
inline constexpr Target kTargets[] = {
    {"config", config},         {"overrides", overrides},   {"safetensors", safetensors},
    {"shards", shards},         {"checkpoint", checkpoint}, {"tokens", tokens},
    {"vocabulary", vocabulary}, {"hf_config", hf_config},   {"metrics", metrics}};

// Throws std::logic_error with `what` unless `holds`.
void require(bool holds, const std::string& what);

// An empty folder of this process, in memory where the system has that, removed at exit. Its path is
// the same in every run of a process.
const std::string& scratch_folder();
void write(const std::string& name, std::string_view bytes);  // into the scratch folder
std::string scratch(const std::string& name);                 // path of a file in it

// Calls the reader. An lmo::Error has to name one of `files` (empty: anything), in clean text.
bool accepts(const std::function<void()>& reader, std::initializer_list<std::string> files);

// Several files in one input: a line "@@ NAME" begins each. What comes before the first goes to
// `first`. Names outside of `known` are left out.
std::map<std::string, std::string> split_files(std::string_view input, const std::string& first,
                                               std::initializer_list<const char*> known);

}  // namespace lmo::fuzz
