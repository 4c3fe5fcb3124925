// The schema: one table of keys from which come validation, defaults, the resolved configuration
// and the reference page.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "llmc/train/json_merge.h"

namespace lmo {

constexpr double kMaxCount = 1e15;  // integers up to here are exact as double

// What a key takes.
struct Accepts {
    enum class Kind { text, texts, integer, number, boolean, choice, special };
    Kind kind;
    double low = 0, high = 0;                     // integer, number
    bool above_low = false, below_high = false;   // the bound itself is out
    std::vector<std::string> choices = {};        // choice
    std::function<bool(const Json&)> valid = {};  // special
    std::string special = {};                     // special: "expected ..."

    std::string expected() const;  // "a number > 0"
    // Turns the value into its normal form (1e3 into 1000 for an integer); false: not acceptable.
    bool normalise(Json& value) const;
};

struct Default {
    enum class Kind { required, required_by_train, value };
    Kind kind;
    std::string text = {};                                   // as the reference page shows it
    std::function<Json(const Json& resolved)> compute = {};  // null: no value
};

// A key that only some values of another key use; that one comes earlier in the table.
struct When {
    std::string key;
    std::vector<std::string> values;
};

struct Key {
    std::string path;
    Accepts accepts;
    Default fallback;
    std::string meaning;
    When when = {};
};

const std::vector<Key>& config_keys();
// The keys of one entry of optimizer.groups, in a configuration or in a preset file.
const std::vector<Key>& group_keys();
const std::vector<std::string>& role_names();  // with "any"

// Throws "FILE: KEY = VALUE: expected ...". `prefix` stands before the path in messages.
[[noreturn]] void reject(const Provenance& origin, const std::string& path, const Json& value,
                         const std::string& expected);

struct Resolution {
    Json values = Json::object();      // every key that applies, with its value
    std::vector<std::string> missing;  // "run.steps (an integer >= 1)"
};

// Checks `given` against the table and fills in defaults. `prefix` ("groups[0].") leads the paths
// in messages. Throws UsageError at the first unknown key, unused key or unacceptable value.
Resolution resolve(const std::vector<Key>& keys, const Json& given, const Provenance& origin,
                   const std::string& prefix, bool training);
[[noreturn]] void reject_missing(const std::string& source,
                                 const std::vector<std::string>& missing);

}  // namespace lmo
