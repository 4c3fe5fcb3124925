// The schema at work: unknown keys, types and ranges, keys that a type does not use, defaults.

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "llmc/core/error.h"
#include "llmc/train/schema.h"

namespace lmo {

namespace {

std::string number_text(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.15g", value);
    return text;
}

std::string quoted_list(const std::vector<std::string>& names) {
    std::string result;
    for (const std::string& name : names) {
        result += (result.empty() ? "\"" : ", \"") + name + "\"";
    }
    return result;
}

bool contains(const std::vector<std::string>& names, const Json& value) {
    return value.is_string() && std::find(names.begin(), names.end(), value) != names.end();
}

// The system would end a name at its first NUL.
bool is_text(const Json& value) {
    if (!value.is_string()) return false;
    const std::string& text = value.get_ref<const std::string&>();
    return !text.empty() && text.find('\0') == std::string::npos;
}

// Levenshtein distance.
size_t edit_distance(const std::string& a, const std::string& b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = std::min({change, row[j] + 1, row[j - 1] + 1});
        }
    }
    return row[b.size()];
}

std::string last_part(const std::string& path) { return path.substr(path.rfind('.') + 1); }

// The known path (a key or a section) nearest to an unknown one: by the whole path, or by its last
// part alone when the section is wrong.
std::string nearest(const std::vector<Key>& keys, const std::string& path) {
    std::string best;
    std::pair<size_t, size_t> best_cost = {SIZE_MAX, SIZE_MAX};
    const auto consider = [&](const std::string& known) {
        const size_t whole = edit_distance(path, known);
        const size_t last = edit_distance(last_part(path), last_part(known)) + 1;
        const std::pair<size_t, size_t> cost = {std::min(whole, last), whole};
        if (cost < best_cost) {
            best_cost = cost;
            best = known;
        }
    };
    for (const Key& key : keys) {
        for (size_t dot = key.path.find('.'); dot != std::string::npos;
             dot = key.path.find('.', dot + 1)) {
            consider(key.path.substr(0, dot));
        }
        consider(key.path);
    }
    return best;
}

struct Checker {
    const std::vector<Key>& keys;
    const Provenance& origin;
    const std::string& prefix;

    // Every path of `given` is a key or leads to one.
    void require_known(const Json& given, const std::string& section) const {
        for (const auto& [name, value] : given.items()) {
            const std::string path = section.empty() ? name : section + "." + name;
            const std::string start = path + ".";
            bool is_key = false, is_section = false;
            for (const Key& key : keys) {
                is_key |= key.path == path;
                is_section |= key.path.compare(0, start.size(), start) == 0;
            }
            if (name.find('.') != std::string::npos) {
                throw UsageError(origin.of(prefix + section) + ": unknown key \"" + name +
                                 "\": in a file write nested objects, {\"" +
                                 name.substr(0, name.find('.')) + "\": {...}}");
            }
            if (!is_key && !is_section) {
                throw UsageError(origin.of(prefix + path) + ": unknown key \"" + prefix + path +
                                 "\"; did you mean \"" + prefix + nearest(keys, path) + "\"?");
            }
            if (!is_section || value.is_null()) continue;
            if (!value.is_object()) reject(origin, prefix + path, value, "an object");
            require_known(value, path);
        }
    }

    bool applies(const Key& key, const Json& resolved) const {
        if (key.when.key.empty()) return true;
        const Json* type = find_value(resolved, key.when.key);
        return type != nullptr && contains(key.when.values, *type);
    }

    void reject_unused(const Key& key, const Json& value, const Json& resolved) const {
        const Json* type = find_value(resolved, key.when.key);
        throw UsageError(origin.of(prefix + key.path) + ": " + prefix + key.path + " = " +
                         value_text(value) + " is not used with " + prefix + key.when.key + " = " +
                         value_text(type == nullptr ? Json() : *type) + ", only with " +
                         quoted_list(key.when.values) + "; remove it or set it to null");
    }

    Json checked(const Key& key, Json value) const {
        if (!key.accepts.normalise(value)) {
            std::string expected = key.accepts.expected();
            const bool too_large = value.is_number() && value.get<double>() > kMaxCount;
            if (key.accepts.kind == Accepts::Kind::integer && too_large) expected += " and <= 1e15";
            reject(origin, prefix + key.path, value, expected);
        }
        return value;
    }
};

}  // namespace

std::string Accepts::expected() const {
    switch (kind) {
        case Kind::text:
            return "a non-empty string";
        case Kind::texts:
            return "a non-empty string, or a list of them";
        case Kind::boolean:
            return "true or false";
        case Kind::choice:
            return (choices.size() == 1 ? "" : "one of ") + quoted_list(choices);
        case Kind::special:
            return special;
        case Kind::integer:
        case Kind::number:
            break;
    }
    std::string text = kind == Kind::integer ? "an integer" : "a number";
    text += (above_low ? " > " : " >= ") + number_text(low);
    const bool bounded = kind == Kind::integer ? high < kMaxCount : std::isfinite(high);
    if (bounded) text += (below_high ? " and < " : " and <= ") + number_text(high);
    return text;
}

bool Accepts::normalise(Json& value) const {
    switch (kind) {
        case Kind::text:
            return is_text(value);
        case Kind::texts:
            if (is_text(value)) value = Json::array({value});
            return value.is_array() && !value.empty() &&
                   std::all_of(value.begin(), value.end(), is_text);
        case Kind::boolean:
            return value.is_boolean();
        case Kind::choice:
            return contains(choices, value);
        case Kind::special:
            return valid(value);
        case Kind::integer:
        case Kind::number:
            break;
    }
    if (!value.is_number()) return false;
    const double number = value.get<double>();
    if (!std::isfinite(number) || number < low || (above_low && number == low) || number > high ||
        (below_high && number == high)) {
        return false;
    }
    if (kind == Kind::integer) {
        if (number != std::floor(number)) return false;
        value = static_cast<int64_t>(number);
    } else {
        value = number;
    }
    return true;
}

void reject(const Provenance& origin, const std::string& path, const Json& value,
            const std::string& expected) {
    throw UsageError(origin.of(path) + ": " + path + " = " + value_text(value) + ": expected " +
                     expected);
}

void reject_missing(const std::string& source, const std::vector<std::string>& missing) {
    std::string list;
    for (const std::string& key : missing) list += (list.empty() ? "" : ", ") + key;
    throw UsageError(source + ": missing: " + list);
}

Resolution resolve(const std::vector<Key>& keys, const Json& given, const Provenance& origin,
                   const std::string& prefix, bool training) {
    const Checker checker{keys, origin, prefix};
    checker.require_known(given, "");
    Resolution result;
    for (const Key& key : keys) {
        const Json* value = find_value(given, key.path);
        if (!checker.applies(key, result.values)) {
            if (value != nullptr) checker.reject_unused(key, *value, result.values);
            continue;
        }
        const Default::Kind fallback = key.fallback.kind;
        Json resolved;
        if (value != nullptr) {
            resolved = checker.checked(key, *value);
        } else if (fallback == Default::Kind::value) {
            resolved = key.fallback.compute(result.values);
        } else if (fallback == Default::Kind::required || training) {
            result.missing.push_back(prefix + key.path + " (" + key.accepts.expected() + ")");
        }
        set_value(result.values, key.path, std::move(resolved));
    }
    return result;
}

}  // namespace lmo
