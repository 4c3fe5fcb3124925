#include "llmc/train/run_state.h"

#include <filesystem>

#include "llmc/core/error.h"
#include "llmc/core/json.h"
#include "llmc/io/files.h"
#include "llmc/train/json_merge.h"
#include "llmc/train/schema.h"

namespace lmo {

using nlohmann::ordered_json;

ordered_json saved_state(const std::string& checkpoint) {
    const std::string path = checkpoint + "/state.json";
    std::error_code ignored;  // what cannot be examined cannot be read either
    if (!std::filesystem::exists(path, ignored)) return nullptr;
    return parse_json<ordered_json>(read_file(path, kMaxJsonBytes), path + ": is not valid JSON");
}

namespace {

// Numbers of a state.json, with errors that name it.
class StateReader {
  public:
    explicit StateReader(const std::string& path) : path_(path) {}

    const ordered_json& at(const ordered_json& where, const char* key) const {
        const auto found = where.find(key);  // end() too where that is no object
        if (found == where.end()) {
            throw Error(path_ + ": key \"" + key + "\" is missing; the file is damaged");
        }
        return *found;
    }
    [[noreturn]] void fail(const char* key, const ordered_json& value,
                           const std::string& expected) const {
        throw Error(path_ + ": key \"" + key + "\" is " + value_text(value) + ", expected " +
                    expected + "; the file is damaged");
    }
    int64_t integer(const ordered_json& where, const char* key, int64_t least) const {
        const ordered_json& value = at(where, key);
        const bool whole = value.is_number_integer();
        if (!whole || value.get<double>() > kMaxCount || value.get<int64_t>() < least) {
            fail(key, value, "an integer from " + std::to_string(least) + " to 1e15");
        }
        return value.get<int64_t>();
    }
    double number(const ordered_json& where, const char* key) const {
        const ordered_json& value = at(where, key);
        if (!value.is_number()) fail(key, value, "a number");
        return value.get<double>();
    }

    // The form that data_fingerprint() gives.
    void fingerprint(const ordered_json& set) const {
        const ordered_json& files = at(set, "files");
        if (!files.is_array()) fail("files", files, "a list");
        for (const ordered_json& file : files) {
            integer(file, "bytes", 0);
            const ordered_json& sum = at(file, "xxh3_128");
            if (!sum.is_string()) fail("xxh3_128", sum, "a string");
        }
    }

  private:
    std::string path_;
};

}  // namespace

RunState read_run_state(const std::string& checkpoint) {
    const StateReader read(checkpoint + "/state.json");
    const ordered_json saved = saved_state(checkpoint);
    RunState state;
    const ordered_json& schedule = read.at(saved, "schedule");
    const ordered_json& started = read.at(schedule, "started");
    if (!started.is_boolean()) read.fail("started", started, "true or false");
    state.schedule.started = started;
    state.schedule.loss0 = read.number(schedule, "loss0");
    state.schedule.delta0 = read.number(schedule, "delta0");
    state.schedule.delta_star = read.number(schedule, "delta_star");
    state.schedule.smoothed_loss = read.number(schedule, "smoothed_loss");
    // Checkpoints of older versions lack previous_loss, data, spike and left_out.
    if (schedule.contains("previous_loss")) {
        state.schedule.previous_loss = read.number(schedule, "previous_loss");
    }
    state.schedule.switched_at = read.integer(schedule, "switched_at", -1);
    state.schedule.peak = read.number(schedule, "peak");
    state.updates = read.integer(saved, "updates", 0);
    state.samples = read.integer(saved, "samples", 0);
    state.train_sequences = read.integer(saved, "train_sequences", 0);
    if (saved.contains("data")) {
        state.data = saved["data"];
        for (const char* part : {"train", "val"}) read.fingerprint(read.at(state.data, part));
    }
    state.spike = saved.value("spike", ordered_json());
    state.left_out = saved.value("left_out", ordered_json::array());
    const ordered_json& compute = read.at(saved, "compute");
    if (!compute.is_string()) read.fail("compute", compute, "the name of a type");
    state.compute = compute;
    // Older versions knew one rank only.
    if (saved.contains("ranks")) state.ranks = read.integer(saved, "ranks", 1);
    if (saved.contains("epoch_batch")) state.epoch_batch = read.integer(saved, "epoch_batch", 1);
    return state;
}

std::string saved_tokenizer(const std::string& checkpoint) {
    const ordered_json state = saved_state(checkpoint);
    const ordered_json* name = find_value(state, "config.data.tokenizer");
    return name != nullptr && name->is_string() ? name->get<std::string>() : "";
}

}  // namespace lmo
