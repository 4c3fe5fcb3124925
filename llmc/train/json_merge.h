// Configuration files as one JSON tree: include, merge, --set, and where every value came from.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "llmc/core/json.h"

namespace lmo {

using Json = nlohmann::ordered_json;

// Where the values of a tree came from, for error messages.
struct Provenance {
    std::string main;                            // the file that was asked for
    std::map<std::string, std::string> sources;  // "key.path" -> file or "--set"

    // The source of a path, else of the object or list that holds it, else `main`.
    const std::string& of(std::string path) const;
};

struct ConfigTree {
    Json values = Json::object();
    Provenance origin;
};

// parse_json() of llmc/core/json.h as a UsageError.
Json parse_config(const std::string& text, const std::string& name);
// The JSON object in a file. `named_by` (may be empty) starts the message when it cannot be read.
Json read_json_object(const std::string& path, const std::string& named_by);

// The file with its includes, then the --set texts, merged. Bounded in depth, files and bytes.
ConfigTree merge_config(const std::string& path, const std::vector<std::string>& overrides);

// The value at "key.path", or nullptr. A null counts as absent.
const Json* find_value(const Json& tree, const std::string& path);
// Creates the objects on the way.
void set_value(Json& tree, const std::string& path, Json value);

}  // namespace lmo
