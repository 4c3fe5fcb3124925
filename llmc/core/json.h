// JSON of files that nobody vouches for: strict syntax, bounded depth, no key twice in one object.
// Depth matters because the library writes, compares and copies values by recursion.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace lmo {

constexpr int kMaxJsonDepth = 64;
constexpr size_t kMaxJsonBytes = 100'000'000;  // of a file; the limit of safetensors headers too

// Throws Error "NAME: line L, column C: what is wrong". Json: nlohmann::json or ordered_json.
template <typename Json>
Json parse_json(const std::string& text, const std::string& name);

// A value as messages show it: JSON on one line, cut where it is long.
template <typename Json>
std::string value_text(const Json& value);

}  // namespace lmo
