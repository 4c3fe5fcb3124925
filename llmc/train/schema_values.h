// Short names for what keys accept and where their defaults come from; for the schema's own files.
#pragma once

#include <limits>
#include <optional>

#include "llmc/train/schema.h"

namespace lmo::schema {

using Kind = Accepts::Kind;

constexpr double kUnbounded = std::numeric_limits<double>::infinity();
constexpr double kMaxExtent = 1 << 20;      // of one axis of a tensor
constexpr double kMaxVocabulary = 1 << 16;  // token ids are uint16

inline Accepts text() { return {Kind::text}; }
inline Accepts texts() { return {Kind::texts}; }
inline Accepts boolean() { return {Kind::boolean}; }
inline Accepts integer(double low, double high = kMaxCount) { return {Kind::integer, low, high}; }
inline Accepts at_least(double low) { return {Kind::number, low, kUnbounded}; }
inline Accepts above(double low) { return {Kind::number, low, kUnbounded, true}; }
inline Accepts from_below(double low, double high) {
    return {Kind::number, low, high, false, true};
}
inline Accepts above_to(double low, double high) { return {Kind::number, low, high, true}; }
inline Accepts one_of(std::vector<std::string> choices) {
    return {Kind::choice, 0, 0, false, false, std::move(choices)};
}
inline Accepts special(std::string expected, std::function<bool(const Json&)> valid) {
    return {Kind::special, 0, 0, false, false, {}, std::move(valid), std::move(expected)};
}

inline Default required() { return {Default::Kind::required, "required"}; }
inline Default required_by_train() {
    return {Default::Kind::required_by_train, "required by train"};
}
inline Default computed(std::string text, std::function<Json(const Json&)> compute) {
    return {Default::Kind::value, std::move(text), std::move(compute)};
}
inline Default none(std::string text = "none") {
    return computed(std::move(text), [](const Json&) { return Json(); });
}
inline Default is(const Json& value) {
    return computed(value.is_string() ? value.get<std::string>() : value.dump(),
                    [value](const Json&) { return value; });
}
inline Default same_as(const std::string& path) {
    return computed(path, [path](const Json& resolved) {
        const Json* value = find_value(resolved, path);
        return value == nullptr ? Json() : *value;
    });
}

// The exponent of a power of the number of updates, written as a number or as one of the published
// fractions.
inline std::optional<double> power_of(const Json& value) {
    if (value.is_number()) {
        const double power = value;
        return power > 0 && power <= 1 ? std::optional(power) : std::nullopt;
    }
    constexpr std::pair<const char*, double> kFractions[] = {
        {"1/2", 1.0 / 2}, {"2/3", 2.0 / 3}, {"4/7", 4.0 / 7}, {"5/7", 5.0 / 7}, {"3/4", 3.0 / 4}};
    for (const auto& [text, power] : kFractions) {
        if (value == text) return power;
    }
    return std::nullopt;
}

inline Accepts power() {
    return special("a number > 0 and <= 1, or \"1/2\", \"4/7\", \"2/3\", \"5/7\" or \"3/4\"",
                   [](const Json& value) { return power_of(value).has_value(); });
}

// Estimator, communication, outer stage (schema_stages.cpp).
std::vector<Key> stage_keys();

}  // namespace lmo::schema
