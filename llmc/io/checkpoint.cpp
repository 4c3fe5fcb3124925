#include "llmc/io/checkpoint.h"

#include <algorithm>
#include <cassert>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "llmc/core/error.h"
#include "llmc/core/json.h"
#include "llmc/io/files.h"

namespace lmo {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kManifest = "manifest.json";
constexpr const char* kTemporary = ".tmp_step_";  // how names of unfinished folders begin
constexpr const char* kFiles[] = {"config.json", "model.safetensors", "optimizer.safetensors",
                                  "state.json"};

std::string step_name(int64_t step) {
    char text[32];
    std::snprintf(text, sizeof text, "step_%08lld", static_cast<long long>(step));
    return text;
}

struct Found {
    int64_t step;
    bool replaced;  // "step_N.old": a newer save of the same step was being put in its place
    fs::path folder;
};

// "step_00001000" or "step_00001000.old"; false for any other name.
bool parse_name(std::string name, Found* found) {
    const std::string prefix = "step_", suffix = ".old";
    if (name.compare(0, prefix.size(), prefix) != 0) return false;
    found->replaced = name.size() > suffix.size() &&
                      name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
    if (found->replaced) name.resize(name.size() - suffix.size());
    const std::string digits = name.substr(prefix.size());
    if (digits.empty() || digits.size() > 18) return false;
    if (digits.find_first_not_of("0123456789") != std::string::npos) return false;
    found->step = std::stoll(digits);
    return true;
}

// Visits the entries of a folder that may not exist.
template <typename Visit>
void for_entries(const fs::path& folder, Visit visit) {
    std::error_code code;
    if (!fs::exists(folder, code) && !code) return;
    fs::directory_iterator entry(folder, code);
    for (; !code && entry != fs::directory_iterator(); entry.increment(code)) visit(*entry);
    if (code) throw Error("cannot list '" + folder.string() + "': " + code.message());
}

// Newest first; of one step, the folder proper before its ".old".
std::vector<Found> list_checkpoints(const fs::path& root) {
    std::vector<Found> result;
    for_entries(root, [&](const fs::directory_entry& entry) {
        Found found{0, false, entry.path()};
        std::error_code ignored;  // what cannot be examined is no checkpoint
        if (entry.is_directory(ignored) && parse_name(entry.path().filename().string(), &found)) {
            result.push_back(found);
        }
    });
    std::sort(result.begin(), result.end(), [](const Found& a, const Found& b) {
        return a.step != b.step ? a.step > b.step : a.replaced < b.replaced;
    });
    return result;
}

void move_folder(const fs::path& from, const fs::path& to) {
    std::error_code code;
    fs::rename(from, to, code);
    if (code) {
        throw Error("cannot rename '" + from.string() + "' to '" + to.string() +
                    "': " + code.message());
    }
}

void remove_folder(const fs::path& folder) {
    std::error_code code;
    fs::remove_all(folder, code);
    if (code) throw Error("cannot remove '" + folder.string() + "': " + code.message());
}

// First out of the way by one rename: if we are killed half-way, the rest is a left-over temporary,
// not a broken checkpoint.
void remove_checkpoint(const fs::path& folder) {
    const fs::path temporary =
        folder.parent_path() / (".tmp_" + folder.filename().string() + "_removed");
    move_folder(folder, temporary);
    remove_folder(temporary);
}

// Runs a clean-up that nothing depends on: its failure is a warning.
template <typename Clean>
void warn_if_it_fails(std::vector<std::string>* warnings, Clean clean) {
    try {
        clean();
    } catch (const std::exception& error) {
        if (warnings) warnings->push_back(error.what());
    }
}

void remove_leftovers(const fs::path& root, std::vector<std::string>* warnings) {
    std::vector<fs::path> leftovers;
    warn_if_it_fails(warnings, [&] {
        for_entries(root, [&](const fs::directory_entry& entry) {
            const std::string name = entry.path().filename().string();
            if (name.compare(0, std::string(kTemporary).size(), kTemporary) == 0) {
                leftovers.push_back(entry.path());
            }
        });
    });
    for (const fs::path& path : leftovers) {
        warn_if_it_fails(warnings, [&] { remove_folder(path); });
    }
}

FileSummary write_json(const fs::path& path, const json& value) {
    FileWriter file(path.string());
    // A file name of another encoding may be among the texts.
    file.write(value.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
    return file.close();
}

void write_files(const fs::path& folder, int64_t step, const CheckpointContents& contents) {
    json files = json::object();
    const auto add = [&](const std::string& name, const FileSummary& summary) {
        files[name] = {{"bytes", summary.bytes}, {"xxh3_128", summary.xxh3_128}};
    };
    const auto tensors = [&](const std::string& name, const std::vector<TensorSource>& sources) {
        add(name, write_safetensors((folder / name).string(), sources, {{"format", "pt"}}));
    };
    tensors("model.safetensors", contents.model);
    tensors("optimizer.safetensors", contents.optimizer);
    add("config.json", write_json(folder / "config.json", *contents.model_config));
    add("state.json", write_json(folder / "state.json", *contents.state));
    write_json(folder / kManifest, {{"format", 1}, {"step", step}, {"files", files}});
    sync_folder(folder.string());
}

// Renames the finished folder to its place. At every moment one complete checkpoint of the step, or
// the one before, has a name that newest_checkpoint() finds.
void put_in_place(const fs::path& temporary, const fs::path& target) {
    const fs::path old = target.string() + ".old";
    bool moved = false;
    if (fs::exists(target)) {
        if (checkpoint_is_valid(target.string(), nullptr)) {
            if (fs::exists(old)) remove_checkpoint(old);
            move_folder(target, old);
            moved = true;
        } else {
            remove_checkpoint(target);
        }
    }
    try {
        move_folder(temporary, target);
    } catch (...) {
        std::error_code ignored;  // the first error is the one to report
        if (moved) fs::rename(old, target, ignored);
        throw;
    }
    sync_folder(target.parent_path().string());
}

// Cheap: is there a manifest? (A folder gets its name only when complete.)
bool looks_complete(const Found& found) {
    std::error_code ignored;
    return fs::exists(found.folder / kManifest, ignored);
}

void prune(const fs::path& root, const fs::path& saved, int keep,
           std::vector<std::string>* warnings) {
    int kept = 1;  // `saved`, whatever its step
    std::vector<Found> all;
    warn_if_it_fails(warnings, [&] { all = list_checkpoints(root); });
    for (const Found& found : all) {
        if (found.folder == saved) continue;
        if (found.replaced || (keep > 0 && looks_complete(found) && ++kept > keep)) {
            warn_if_it_fails(warnings, [&] { remove_checkpoint(found.folder); });
        }
    }
}

// Compares one file with its line of the manifest; returns what is wrong, or nothing.
std::string check_file(const fs::path& folder, const std::string& name, const json& line) {
    if (!is_plain_file_name(name)) return "manifest.json names '" + name + "', not a plain name";
    if (!line.is_object() || !line.contains("bytes") || !line["bytes"].is_number_unsigned() ||
        !line.contains("xxh3_128") || !line["xxh3_128"].is_string()) {
        return "manifest.json lacks size or checksum of " + name;
    }
    const fs::path path = folder / name;
    std::error_code code;
    if (!fs::is_regular_file(path, code)) return name + " is missing";
    const uint64_t bytes = fs::file_size(path, code);
    if (code) return name + ": " + code.message();
    const uint64_t expected = line["bytes"].get<uint64_t>();
    if (bytes != expected) {
        return name + " has " + std::to_string(bytes) + " bytes, the manifest says " +
               std::to_string(expected);
    }
    if (summarize_file(path.string()).xxh3_128 != line["xxh3_128"].get<std::string>()) {
        return name + " does not have the checksum of the manifest";
    }
    return "";
}

std::string find_problem(const fs::path& folder) {
    std::error_code code;
    if (!fs::exists(folder / kManifest, code)) return "it has no manifest.json";
    const std::string path = (folder / kManifest).string();
    const json manifest = parse_json<json>(read_file(path, kMaxJsonBytes), path + " is damaged");
    if (!manifest.is_object() || !manifest.contains("files") || !manifest["files"].is_object()) {
        return "manifest.json is damaged";
    }
    if (manifest.value("format", json()) != 1) {
        return "manifest.json is of format " + value_text(manifest.value("format", json())) +
               ", this program knows 1";
    }
    Found named{0, false, folder};
    const json step = manifest.value("step", json());
    if (!step.is_number_unsigned() ||
        (parse_name(folder.filename().string(), &named) && step != named.step)) {
        return "manifest.json is of step " + value_text(step) + ", not of this folder";
    }
    const json& files = manifest["files"];
    for (const char* name : kFiles) {
        if (!files.contains(name)) return std::string("manifest.json does not name ") + name;
    }
    for (const auto& [name, line] : files.items()) {
        std::string problem = check_file(folder, name, line);
        if (!problem.empty()) return problem;
    }
    return "";
}

}  // namespace

std::string save_checkpoint(const std::string& run_dir, int64_t step,
                            const CheckpointContents& contents, int keep,
                            std::vector<std::string>* warnings) {
    assert(step >= 0 && contents.model_config && contents.state);
    const fs::path root = fs::path(run_dir) / "checkpoints";
    const fs::path target = root / step_name(step);
    const fs::path temporary = root / (".tmp_" + step_name(step));
    remove_leftovers(root, warnings);
    try {
        make_folders(temporary.string());
        write_files(temporary, step, contents);
        put_in_place(temporary, target);
    } catch (const std::exception& error) {
        std::error_code ignored;  // the first error is the one to report
        fs::remove_all(temporary, ignored);
        throw Error("checkpoint of step " + std::to_string(step) + " not saved: " + error.what());
    }
    prune(root, target, keep, warnings);
    return target.string();
}

void remove_temporaries(const std::string& run_dir, std::vector<std::string>* warnings) {
    const fs::path base(run_dir);
    remove_leftovers(base / "checkpoints", warnings);
    for (const char* name : {"metrics.jsonl", "run_config.json"}) {
        std::error_code code;
        const fs::path path = base / temporary_name(name);
        fs::remove(path, code);
        if (code && warnings) {
            warnings->push_back("cannot remove '" + path.string() + "': " + code.message());
        }
    }
}

bool checkpoint_is_valid(const std::string& folder, std::string* reason) {
    std::string problem;
    try {
        problem = find_problem(folder);
    } catch (const std::exception& error) {  // a file that cannot be read is a reason, too
        problem = error.what();
    }
    if (reason) *reason = problem;
    return problem.empty();
}

std::optional<std::string> newest_checkpoint(const std::string& run_dir,
                                             std::vector<std::string>* warnings, int64_t last) {
    for (const Found& found : list_checkpoints(fs::path(run_dir) / "checkpoints")) {
        if (found.step > last) continue;
        std::string reason;
        if (checkpoint_is_valid(found.folder.string(), &reason)) return found.folder.string();
        if (warnings) {
            warnings->push_back("checkpoint '" + found.folder.string() +
                                "' is passed over: " + reason);
        }
    }
    return std::nullopt;
}

bool run_folder_is_used(const std::string& run_dir) {
    const fs::path base(run_dir);
    std::error_code code;
    const auto bytes = fs::file_size(base / "metrics.jsonl", code);
    if (!code && bytes > 0) return true;
    return !list_checkpoints(base / "checkpoints").empty();
}

}  // namespace lmo
