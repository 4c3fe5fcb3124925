#pragma once

#include <cassert>
#include <initializer_list>
#include <string>
#include <utility>

namespace lmo {

// The value that goes by `name`; the schema has checked that there is one.
template <typename T>
T named(const std::string& name, std::initializer_list<std::pair<const char*, T>> values) {
    for (const auto& [known, value] : values) {
        if (name == known) return value;
    }
    assert(!"a choice of the schema that nobody reads");
    return values.begin()->second;
}

}  // namespace lmo
