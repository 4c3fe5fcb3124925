#include "llmc/io/metrics.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>

#include "llmc/core/error.h"
#include "llmc/core/json.h"
#include "llmc/io/files.h"
#include "llmc/io/tensorboard.h"

namespace lmo {

namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// Was the line written by a run that had done at most `resume_step` updates?
bool belongs_before(const json& line, int64_t resume_step) {
    const std::string type = line.value("type", "");
    if (type == "summary") return false;
    const auto step = line.find("step");
    if (step == line.end() || !step->is_number_integer()) return true;  // "schedule"
    // A "train" line describes update `step`; "val" and "sample" the weights after `step` updates.
    const bool of_weights = type == "val" || type == "sample";
    return step->get<int64_t>() < resume_step + (of_weights ? 1 : 0);
}

void drop_lines_from(const std::string& path, int64_t resume_step) {
    if (!std::filesystem::exists(path)) return;
    const std::string text = read_file(path);
    std::string kept;
    int unreadable = 0;
    for (size_t begin = 0; resume_step > 0 && begin < text.size();) {
        const size_t end = text.find('\n', begin);
        if (end == std::string::npos) break;  // torn: the writer was killed
        const std::string line = text.substr(begin, end - begin);
        begin = end + 1;
        try {
            const json parsed = parse_json<json>(line, path);
            if (belongs_before(parsed, resume_step)) kept += line + "\n";
        } catch (const json::exception&) {  // an object of other types
            ++unreadable;
        } catch (const Error&) {
            ++unreadable;
        }
    }
    if (unreadable > 0) {
        std::fprintf(stderr, "warning: '%s': %d lines are not JSON objects and were dropped\n",
                     path.c_str(), unreadable);
    }
    if (kept != text) write_file_atomically(path, kept);
}

// The finite numbers of each kind of tensor.
std::map<std::string, std::vector<double>> by_kind(const ordered_json& tensors) {
    std::map<std::string, std::vector<double>> kinds;
    for (const auto& [name, value] : tensors.items()) {
        if (!value.is_number() || !std::isfinite(value.get<double>())) continue;
        const std::string stem = name.ends_with(".weight") ? name.substr(0, name.size() - 7) : name;
        kinds[stem.substr(stem.rfind('.') + 1)].push_back(value.get<double>());
    }
    return kinds;
}

}  // namespace

struct MetricsLog::Impl {
    std::string path;
    int file = -1;
    bool reported = false;
    std::string waiting;  // lines that the disk has not taken yet
    int64_t lost = 0;     // lines that there was no room for here either
    std::unique_ptr<TensorboardWriter> tensorboard;

    ~Impl() {
        if (file < 0) return;
        flush();
        lost += std::count(waiting.begin(), waiting.end(), '\n');
        if (lost > 0) {
            std::fprintf(stderr, "warning: '%s' lacks %lld lines that could not be written\n",
                         path.c_str(), static_cast<long long>(lost));
        }
        ::close(file);
    }

    void report(const std::string& what, int code, const char* consequence) {
        std::fprintf(stderr, "warning: %s: %s; training goes on, %s\n", what.c_str(),
                     std::strerror(code), consequence);
    }

    void append(const std::string& line) {
        constexpr size_t kMostWaiting = 64 << 20;  // a quarter of a million lines
        if (waiting.size() + line.size() > kMostWaiting) {
            ++lost;
        } else {
            waiting += line;
        }
        flush();
    }

    void flush() {
        if (waiting.empty()) return;
        struct stat before {};
        const bool known = ::fstat(file, &before) == 0;
        ssize_t taken;
        do {
            taken = ::write(file, waiting.data(), waiting.size());
        } while (taken < 0 && errno == EINTR);
        if (taken == static_cast<ssize_t>(waiting.size())) {
            waiting.clear();
            return;
        }
        if (!reported) {
            report("cannot write '" + path + "'", taken < 0 ? errno : ENOSPC,
                   "these metrics wait in memory until there is room");
        }
        reported = true;
        // Take back half a line; where that fails, what comes next continues it.
        if (taken > 0 && !(known && ::ftruncate(file, before.st_size) == 0)) {
            waiting.erase(0, static_cast<size_t>(taken));
        }
    }

    void sync() {
        flush();
        if (::fsync(file) == 0 || errno == EINVAL || errno == ENOTSUP) return;
        if (!reported) report("cannot sync '" + path + "'", errno, "without it");
        reported = true;
    }

    void add_events(const ordered_json& line) {
        const auto step = line.find("step");
        if (!tensorboard || step == line.end() || !step->is_number_integer()) return;
        const std::string prefix = line.value("type", "") + "/";
        bool written = true;
        for (const auto& [key, value] : line.items()) {
            if (key == "step" || !value.is_number()) continue;
            written &= tensorboard->scalar(prefix + key, step->get<int64_t>(), value.get<double>());
        }
        const auto tensors = line.find("tensors");
        if (tensors != line.end() && tensors->is_object()) {
            written &= add_kinds(prefix, step->get<int64_t>(), *tensors);
        }
        if (written && tensorboard->flush()) return;
        report("cannot write '" + tensorboard->path() + "'", errno, "without TensorBoard's events");
        tensorboard.reset();  // half a record makes the rest of the file unreadable
    }

    bool add_kinds(const std::string& prefix, int64_t step, const ordered_json& tensors) {
        bool written = true;
        for (const auto& [kind, values] : by_kind(tensors)) {
            written &= values.size() == 1 ? tensorboard->scalar(prefix + kind, step, values[0])
                                          : tensorboard->histogram(prefix + kind, step, values);
        }
        return written;
    }
};

MetricsLog::MetricsLog(const std::string& run_dir, int64_t resume_step, bool tensorboard)
    : impl_(std::make_unique<Impl>()) {
    impl_->path = run_dir + "/metrics.jsonl";
    drop_lines_from(impl_->path, resume_step);
    impl_->file = ::open(impl_->path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (impl_->file < 0) {
        throw Error("cannot open '" + impl_->path + "': " + std::strerror(errno));
    }
    // What TensorBoard has of step `resume_step` itself is the "val" line before it: that one
    // stays.
    const int64_t first_step = resume_step > 0 ? resume_step + 1 : 0;
    if (tensorboard) impl_->tensorboard = std::make_unique<TensorboardWriter>(run_dir, first_step);
}

MetricsLog::~MetricsLog() = default;

void MetricsLog::sync() { impl_->sync(); }

void MetricsLog::write(const ordered_json& line) {
    impl_->append(line.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n");
    impl_->add_events(line);
}

}  // namespace lmo
