#include "llmc/train/data_fingerprint.h"

#include <algorithm>
#include <filesystem>

#include "llmc/core/error.h"
#include "llmc/io/files.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

constexpr int64_t kBlock = 4096, kBlocksOfASet = 4096, kBlocksOfAFile = 16, kEnd = 65536;

// Both ends of a file and blocks between them; they may overlap in a short file.
std::vector<FilePart> sampled_parts(int64_t bytes, int64_t bytes_of_set) {
    const int64_t end = std::min(kEnd, bytes), block = std::min(kBlock, bytes);
    const double share = static_cast<double>(bytes) / static_cast<double>(bytes_of_set);
    const int64_t blocks = std::max(kBlocksOfAFile, static_cast<int64_t>(kBlocksOfASet * share));
    const double distance = static_cast<double>(bytes - block) / static_cast<double>(blocks + 1);
    std::vector<FilePart> parts = {{0, end}};
    for (int64_t i = 1; i <= blocks; ++i) {
        parts.push_back({static_cast<int64_t>(distance * static_cast<double>(i)), block});
    }
    parts.push_back({bytes - end, end});
    return parts;
}

int64_t size_of_file(const std::string& path) {
    std::error_code code;
    const auto bytes = std::filesystem::file_size(path, code);
    if (code) throw Error("cannot examine '" + path + "': " + code.message());
    return static_cast<int64_t>(bytes);
}

}  // namespace

ordered_json data_fingerprint(const Dataset& set, int64_t whole_up_to) {
    int64_t total = 0;
    for (const TokenFile& file : set.files()) total += size_of_file(file.path());
    const bool sampled = total > whole_up_to;
    ordered_json files = ordered_json::array();
    for (const TokenFile& file : set.files()) {
        const FileSummary summary =
            sampled ? summarize_parts(file.path(), sampled_parts(size_of_file(file.path()), total))
                    : summarize_file(file.path());
        files.push_back({{"path", file.path()},
                         {"bytes", summary.bytes},
                         {"xxh3_128", summary.xxh3_128}});
    }
    return {{"sampled", sampled}, {"files", files}};
}

void require_same_data(const std::string& key, const ordered_json& saved, const ordered_json& now,
                       const std::string& checkpoint) {
    const std::string remedy = "; restore it to continue, or choose another run.dir";
    const ordered_json &old_files = saved.at("files"), &files = now.at("files");
    if (old_files.size() != files.size()) {
        throw Error(key + " now is " + std::to_string(files.size()) + " files, but " +
                    std::to_string(old_files.size()) + " when " + checkpoint + " was written" +
                    remedy);
    }
    for (size_t i = 0; i < files.size(); ++i) {
        const std::string path = files[i].at("path"), before = checkpoint + " was trained with";
        const int64_t bytes = files[i].at("bytes"), old_bytes = old_files[i].at("bytes");
        if (bytes != old_bytes) {
            throw Error(key + ": " + path + " has " + std::to_string(bytes) + " bytes, the file " +
                        before + " had " + std::to_string(old_bytes) + remedy);
        }
        if (files[i].at("xxh3_128") != old_files[i].at("xxh3_128")) {
            throw Error(key + ": " + path + " does not hold what " + before +
                        " (same size, other XXH3-128)" + remedy);
        }
    }
}

}  // namespace lmo
