// Include, merge and --set of configuration files, with the source of every value.

#include "llmc/train/json_merge.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "llmc/core/error.h"

namespace lmo {

namespace fs = std::filesystem;

namespace {

// Together with its includes a configuration is at most this: far beyond what anybody writes, and
// little work even where every file includes the next one twice.
constexpr size_t kMaxIncludeDepth = 32, kMaxFiles = 1000, kMaxConfigBytes = 1 << 19;
constexpr size_t kMaxKeys = kMaxJsonDepth;  // of a --set path
constexpr size_t kMaxPath = 256;            // bytes of "key.path"

std::string join(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "." + key;
}

std::vector<std::string> split(const std::string& path) {
    std::vector<std::string> keys;
    for (size_t begin = 0; begin < path.size();) {
        const size_t end = std::min(path.find('.', begin), path.size());
        keys.push_back(path.substr(begin, end - begin));
        begin = end + 1;
    }
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
        if (child.size() > kMaxPath) {  // one is kept for every value
            throw UsageError(source + ": unknown key \"" + child.substr(0, kMaxPath) + "...\"");
        }
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

// What merging a file and its includes has come to so far.
struct Inclusion {
    std::vector<std::string> open;  // the files being read, outermost first
    size_t files = 0, bytes = 0;

    void enter(const std::string& path, const std::string& named_by) {
        std::string chain;
        for (const std::string& file : open) chain += file + " -> ";
        for (const std::string& file : open) {
            std::error_code error;
            if (file == path || fs::equivalent(file, path, error)) {
                throw UsageError(named_by + "the files include one another in a circle: " + chain +
                                 path);
            }
        }
        if (open.size() >= kMaxIncludeDepth || files >= kMaxFiles) {
            throw UsageError(named_by + path + ": " +
                             (files >= kMaxFiles ? "more than " + std::to_string(kMaxFiles) +
                                                       " files are included"
                                                 : "files include one another deeper than " +
                                                       std::to_string(kMaxIncludeDepth) + " levels"));
        }
        ++files;
        open.push_back(path);
    }
};

// The text of a file of at most `most` bytes.
std::string read_config_text(const std::string& path, const std::string& named_by, size_t most) {
    std::error_code ignored;  // what cannot be examined cannot be opened either
    const bool folder = fs::is_directory(path, ignored);
    std::ifstream in(path);
    if (folder || !in) {
        const std::string why = folder ? "is a folder" : std::strerror(errno);
        throw UsageError(named_by + "cannot read " + path + ": " + why);
    }
    std::string text;
    char piece[4096];
    while (in.read(piece, sizeof piece), in.gcount() > 0) {
        text.append(piece, static_cast<size_t>(in.gcount()));
        if (text.size() <= most) continue;
        throw UsageError(named_by + path + ": more than " + std::to_string(kMaxConfigBytes) +
                         " bytes, which a configuration with all that it includes may have");
    }
    return text;
}

Json parse_object(const std::string& text, const std::string& path) {
    Json json = parse_config(text, path);
    if (!json.is_object()) {
        throw UsageError(path + ": " + value_text(json) + ": expected an object, {\"key\": value}");
    }
    return json;
}

// Merges the includes of a file, then the file.
void merge_file(ConfigTree& tree, const std::string& path, Inclusion& inclusion) {
    const std::string named_by =
        inclusion.open.empty() ? "" : inclusion.open.back() + ": include: ";
    inclusion.enter(path, named_by);
    const std::string text = read_config_text(path, named_by, kMaxConfigBytes - inclusion.bytes);
    inclusion.bytes += text.size();
    Json file = parse_object(text, path);
    for (const std::string& name : include_list(file, path)) {
        merge_file(tree, (fs::path(path).parent_path() / name).lexically_normal().string(),
                   inclusion);
    }
    inclusion.open.pop_back();
    file.erase("include");
    merge_source(tree, file, path);
}

void merge_override(ConfigTree& tree, const std::string& text) {
    const size_t equals = text.find('=');
    const std::string path = text.substr(0, equals);
    const std::vector<std::string> keys = split(path);
    if (equals == std::string::npos || path.empty() || path.back() == '.' ||
        std::count(keys.begin(), keys.end(), "") > 0 || keys.size() > kMaxKeys) {
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
        value = parse_config(value_part, source);
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

Json parse_config(const std::string& text, const std::string& name) {
    try {
        return parse_json<Json>(text, name);
    } catch (const Error& error) {
        throw UsageError(error.what());
    }
}

Json read_json_object(const std::string& path, const std::string& named_by) {
    return parse_object(read_config_text(path, named_by, kMaxConfigBytes), path);
}

ConfigTree merge_config(const std::string& path, const std::vector<std::string>& overrides) {
    ConfigTree tree;
    tree.origin.main = path;
    Inclusion inclusion;
    merge_file(tree, path, inclusion);
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

}  // namespace lmo
