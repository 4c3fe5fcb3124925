// A folder of weights: one safetensors file, or shards with an index.

#include <filesystem>

#include "llmc/core/error.h"
#include "llmc/core/json.h"
#include "llmc/io/safetensors.h"

namespace lmo {

namespace {

using nlohmann::json;

// Tensor name -> shard name, from model.safetensors.index.json.
std::map<std::string, std::string> read_index(const std::string& path) {
    std::map<std::string, std::string> shards;
    const json index =
        parse_json<json>(read_file(path, kMaxJsonBytes), "'" + path + "' is not valid JSON");
    const json* map = nullptr;
    if (index.is_object() && index.contains("weight_map")) map = &index["weight_map"];
    if (!map || !map->is_object()) {
        throw Error("'" + path + "': 'weight_map' should be an object of tensor: file name");
    }
    for (const auto& [tensor, shard] : map->items()) {
        if (!shard.is_string() || !is_plain_file_name(shard.get<std::string>())) {
            throw Error("'" + path + "': weight_map." + tensor + " is " + value_text(shard) +
                        ", expected the name of a file in the same folder");
        }
        shards[tensor] = shard.get<std::string>();
    }
    return shards;
}

}  // namespace

WeightFolder::WeightFolder(const std::string& folder) : folder_(folder) {
    const std::filesystem::path base(folder);
    const std::string single = (base / "model.safetensors").string();
    const std::string index = (base / "model.safetensors.index.json").string();
    std::error_code ignored;  // an unreadable folder ends in the message below
    if (std::filesystem::exists(single, ignored)) {
        files_.emplace_back(single);
        for (const std::string& name : files_[0].names()) where_[name] = 0;
        return;
    }
    if (!std::filesystem::exists(index, ignored)) {
        throw Error("'" + folder + "' holds neither model.safetensors nor " +
                    "model.safetensors.index.json; give a Hugging Face model folder");
    }
    std::map<std::string, int> opened;
    for (const auto& [tensor, shard] : read_index(index)) {
        const auto [entry, added] = opened.try_emplace(shard, static_cast<int>(files_.size()));
        if (added) files_.emplace_back((base / shard).string());
        where_[tensor] = entry->second;
    }
}

bool WeightFolder::has(const std::string& name) const { return where_.count(name) > 0; }

std::vector<std::string> WeightFolder::names() const {
    std::vector<std::string> result;
    for (const auto& item : where_) result.push_back(item.first);
    return result;
}

const SafetensorsFile& WeightFolder::file_of(const std::string& name) const {
    const auto found = where_.find(name);
    if (found == where_.end()) {
        throw Error("'" + folder_ + "' has no tensor '" + name + "'; is it a LLaMA model?");
    }
    return files_[static_cast<size_t>(found->second)];
}

void WeightFolder::require(const std::string& name, const std::vector<int64_t>& shape) const {
    file_of(name).require(name, shape);
}

std::vector<double> WeightFolder::read(const std::string& name,
                                       const std::vector<int64_t>& shape) const {
    return file_of(name).read(name, shape);
}

}  // namespace lmo
