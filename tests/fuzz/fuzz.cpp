#include "tests/fuzz/fuzz.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "llmc/core/error.h"
#include "llmc/core/text.h"

namespace lmo::fuzz {

namespace fs = std::filesystem;

void require(bool holds, const std::string& what) {
    if (!holds) throw std::logic_error(what);
}

namespace {

struct Scratch {
    std::string folder;
    Scratch() {
        const fs::path memory = "/dev/shm";
        const fs::path base = ::access(memory.c_str(), W_OK) == 0 ? memory : fs::temp_directory_path();
        folder = (base / ("lmo_fuzz_" + std::to_string(::getpid()))).string();
        fs::create_directories(folder);
    }
    ~Scratch() {
        std::error_code ignored;
        fs::remove_all(folder, ignored);
    }
};

}  // namespace

const std::string& scratch_folder() {
    static const Scratch scratch;
    return scratch.folder;
}

std::string scratch(const std::string& name) { return scratch_folder() + "/" + name; }

void write(const std::string& name, std::string_view bytes) {
    std::ofstream file(scratch(name), std::ios::binary | std::ios::trunc);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    require(file.good(), "cannot write " + scratch(name));
}

bool accepts(const std::function<void()>& reader, std::initializer_list<std::string> files) {
    try {
        reader();
        return true;
    } catch (const Error& error) {
        const std::string message = error.what();
        require(!message.empty() && message.size() < 9000 + 3 * 8000, "an endless message");
        require(printable(message) == message, "a message with control characters");
        const bool named = std::any_of(files.begin(), files.end(), [&](const std::string& file) {
            return message.find(file) != std::string::npos;
        });
        require(named || files.size() == 0, "the message names no file: " + message);
        return false;
    }
}

std::map<std::string, std::string> split_files(std::string_view input, const std::string& first,
                                               std::initializer_list<const char*> known) {
    std::map<std::string, std::string> files;
    std::string name = first;
    while (!input.empty()) {
        const size_t end = std::min(input.find('\n'), input.size() - 1) + 1;
        const std::string_view line = input.substr(0, end);
        input.remove_prefix(end);
        if (line.substr(0, 3) == "@@ ") {
            name = line.substr(3, line.find_last_not_of('\n') - 2);
            const bool wanted = std::find(known.begin(), known.end(), name) != known.end();
            if (wanted) files[name];
            else name.clear();
        } else if (!name.empty()) {
            files[name] += line;
        }
    }
    files[first];
    return files;
}

}  // namespace lmo::fuzz
