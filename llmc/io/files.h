// Small file helpers that say what went wrong.
#pragma once

#include <string>

namespace lmo {

std::string read_file(const std::string& path);                              // Error names path, reason
void write_file_atomically(const std::string& path, const std::string& text);  // temp, fsync, rename
void make_folders(const std::string& path);

}  // namespace lmo
