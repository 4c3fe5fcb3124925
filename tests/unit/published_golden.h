// Results of the published code and its libraries (dev/reference/published.py).
#pragma once

#include <nlohmann/json.hpp>

#include "llmc/io/files.h"

namespace lmo {

// One part of tests/data/published.json.
inline const nlohmann::json& golden(const char* part) {
    static const auto all = nlohmann::json::parse(read_file("tests/data/published.json"));
    return all.at(part);
}

}  // namespace lmo
