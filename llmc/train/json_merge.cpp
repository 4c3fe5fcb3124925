// Include, merge and --set of configuration files, with the source of every value.

#include "llmc/train/json_merge.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "llmc/core/error.h"

namespace lmo {

namespace fs = std::filesystem;

namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxValueText = 200;

// "FILE: line 3, column 7: " of the last of the first `bytes` bytes.
std::string location(const std::string& name, const std::string& text, size_t bytes) {
    const std::string before = text.substr(0, bytes > 0 ? bytes - 1 : 0);
    const size_t line_start = before.rfind('\n') + 1;  // npos + 1 = 0
    return name + ": line " + std::to_string(1 + std::count(before.begin(), before.end(), '\n')) +
           ", column " + std::to_string(before.size() - line_start + 1) + ": ";
}

// The library's message without its own prefix and position.
std::string reason(const std::string& what) {
    const size_t column = what.find("column ");
    const size_t start = column == std::string::npos ? what.find("] ") : what.find(": ", column);
    return start == std::string::npos ? what : what.substr(start + 2);
}

std::string join(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "." + key;
}

std::vector<std::string> split(const std::string& path) {
    std::vector<std::string> keys;
    std::string key;
    for (std::istringstream in(path); std::getline(in, key, '.');) keys.push_back(key);
    return keys;
}

// Later wins, null deletes; records the source of what it writes.
void merge(Json& target, const Json& patch, const std::string& path, const std::string& source,
           std::map<std::string, std::string>& sources) {
    const auto forget = [&sources](const std::string& gone) {
        sources.erase(gone);
        const std::string inside = gone + ".";
        for (auto i = sources.lower_bound(inside); i != sources.end();) {
            if (i->first.compare(0, inside.size(), inside) != 0) break;
            i = sources.erase(i);
        }
    };
    if (!patch.is_object() || !target.is_object()) {
        forget(path);
        sources[path] = source;
        target = patch.is_object() ? Json::object() : patch;
    }
    if (!patch.is_object()) return;
    for (const auto& [key, value] : patch.items()) {
        const std::string child = join(path, key);
        if (value.is_null()) {
            target.erase(key);
            forget(child);
        } else {
            merge(target[key], value, child, source, sources);
        }
    }
}

// Merges a file or an override. A preset replaces groups of parameters that were given before it,
// as groups replace a preset: the later choice of optimizer counts.
void merge_source(ConfigTree& tree, const Json& patch, const std::string& source) {
    const bool preset = find_value(patch, "optimizer.preset") != nullptr;
    if (preset && find_value(tree.values, "optimizer.groups") != nullptr) {
        const Json forget = {{"optimizer", {{"groups", nullptr}}}};
        merge(tree.values, forget, "", source, tree.origin.sources);
    }
    merge(tree.values, patch, "", source, tree.origin.sources);
}

std::vector<std::string> include_list(const Json& file, const std::string& path) {
    std::vector<std::string> result;
    const Json* include = find_value(file, "include");
    if (include == nullptr) return result;
    const Json list = include->is_array() ? *include : Json::array({*include});
    for (const Json& item : list) {
        if (!item.is_string() || item.get<std::string>().empty() ||
            item.get<std::string>().find('\0') != std::string::npos) {
            throw UsageError(path + ": include = " + value_text(*include) +
                             ": expected a path, or a list of paths, relative to this file");
        }
        result.push_back(item);
    }
    return result;
}

// Merges the includes of a file, then the file. `open`: the files being read, outermost first.
void merge_file(ConfigTree& tree, const std::string& path, std::vector<std::string>& open) {
    std::string named_by, chain;
    for (const std::string& file : open) chain += file + " -> ";
    if (!open.empty()) named_by = open.back() + ": include: ";
    for (const std::string& file : open) {
        std::error_code error;
        if (file == path || fs::equivalent(file, path, error)) {
            throw UsageError(named_by + "the files include one another in a circle: " + chain +
                             path);
        }
    }
    Json file = read_json_object(path, named_by);
    open.push_back(path);
    for (const std::string& name : include_list(file, path)) {
        merge_file(tree, (fs::path(path).parent_path() / name).lexically_normal().string(), open);
    }
    open.pop_back();
    file.erase("include");
    merge_source(tree, file, path);
}

void merge_override(ConfigTree& tree, const std::string& text) {
    const size_t equals = text.find('=');
    const std::string path = text.substr(0, equals);
    const std::vector<std::string> keys = split(path);
    if (equals == std::string::npos || path.empty() || path.back() == '.' ||
        std::count(keys.begin(), keys.end(), "") > 0 || keys.size() > kMaxDepth) {
        throw UsageError("--set " + text +
                         ": expected key.path=value, for example --set optimizer.lr=0.001");
    }
    if (keys[0] == "include") {
        throw UsageError("--set " + text + ": include is for files; name a file that includes it");
    }
    const std::string value_part = text.substr(equals + 1);
    std::string source = "--set";
    Json value;
    try {
        value = parse_json(value_part, source);
    } catch (const UsageError&) {
        value = value_part;
        const bool meant_json = value_part[0] == '{' || value_part[0] == '[';
        if (meant_json) source += " (taken as text, as it is not valid JSON)";
        try {
            (void)value.dump();
        } catch (const Json::type_error&) {
            throw UsageError("--set " + path + ": the value is not valid UTF-8");
        }
    }
    // First out with the old value: an object replaces it whole.
    for (const Json& step : {Json(nullptr), value}) {
        Json patch = step;
        for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
            Json outer = Json::object();
            outer[*key] = std::move(patch);
            patch = std::move(outer);
        }
        merge_source(tree, patch, source);
    }
}

}  // namespace

const std::string& Provenance::of(std::string path) const {
    while (!path.empty()) {
        const auto found = sources.find(path);
        if (found != sources.end()) return found->second;
        const size_t cut = path.find_last_of(".[");
        path.resize(cut == std::string::npos ? 0 : cut);
    }
    return main;
}

Json parse_json(const std::string& text, const std::string& name) {
    std::istringstream in(text);
    const auto position = [&in] {
        return static_cast<size_t>(in.rdbuf()->pubseekoff(0, std::ios::cur, std::ios::in));
    };
    std::vector<std::set<std::string>> keys;  // of the objects that are open
    const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
        if (depth > kMaxDepth) {
            throw UsageError(location(name, text, position()) + "nested deeper than " +
                             std::to_string(kMaxDepth) + " levels");
        }
        if (event == Json::parse_event_t::object_start) keys.emplace_back();
        if (event == Json::parse_event_t::object_end) keys.pop_back();
        if (event == Json::parse_event_t::key && !keys.back().insert(parsed).second) {
            throw UsageError(location(name, text, position()) + "the key " + parsed.dump() +
                             " appears twice in one object; keep one of the two");
        }
        return true;
    };
    try {
        return Json::parse(in, watch);
    } catch (const Json::parse_error& error) {
        const char at = error.byte > 0 && error.byte <= text.size() ? text[error.byte - 1] : ' ';
        throw UsageError(location(name, text, error.byte) + reason(error.what()) +
                         (at == '/' || at == '#' ? " (JSON has no comments)" : ""));
    } catch (const Json::exception& error) {  // a number beyond double
        throw UsageError(location(name, text, position()) + reason(error.what()));
    }
}

Json read_json_object(const std::string& path, const std::string& named_by) {
    std::error_code ignored;  // what cannot be examined cannot be opened either
    const bool folder = fs::is_directory(path, ignored);
    std::ifstream in(path);
    if (folder || !in) {
        const std::string why = folder ? "is a folder" : std::strerror(errno);
        throw UsageError(named_by + "cannot read " + path + ": " + why);
    }
    std::ostringstream text;
    text << in.rdbuf();
    Json json = parse_json(text.str(), path);
    if (!json.is_object()) {
        throw UsageError(path + ": " + value_text(json) + ": expected an object, {\"key\": value}");
    }
    return json;
}

ConfigTree merge_config(const std::string& path, const std::vector<std::string>& overrides) {
    ConfigTree tree;
    tree.origin.main = path;
    std::vector<std::string> open;
    merge_file(tree, path, open);
    for (const std::string& text : overrides) merge_override(tree, text);
    return tree;
}

const Json* find_value(const Json& tree, const std::string& path) {
    const Json* value = &tree;
    for (const std::string& key : split(path)) {
        if (!value->is_object()) return nullptr;
        const auto found = value->find(key);
        if (found == value->end()) return nullptr;
        value = &*found;
    }
    return value->is_null() ? nullptr : value;
}

void set_value(Json& tree, const std::string& path, Json value) {
    Json* target = &tree;
    for (const std::string& key : split(path)) target = &(*target)[key];
    *target = std::move(value);
}

std::string value_text(const Json& value) {
    std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > kMaxValueText) {
        text.resize(kMaxValueText);
        text += "...";
    }
    return text;
}

}  // namespace lmo
