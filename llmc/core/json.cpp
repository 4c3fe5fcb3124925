#include "llmc/core/json.h"

#include <algorithm>
#include <set>
#include <sstream>
#include <vector>

#include "llmc/core/error.h"

namespace lmo {

namespace {

constexpr size_t kMaxValueText = 200;

// "FILE: line 3, column 7: " of the last of the first `bytes` bytes.
std::string location(const std::string& name, const std::string& text, size_t bytes) {
    const std::string before = text.substr(0, bytes > 0 ? bytes - 1 : 0);
    const size_t line_start = before.rfind('\n') + 1;  // npos + 1 = 0
    return name + ": line " + std::to_string(1 + std::count(before.begin(), before.end(), '\n')) +
           ", column " + std::to_string(before.size() - line_start + 1) + ": ";
}

// The library's message without its own prefix and position.
std::string reason(const std::string& what) {
    const size_t column = what.find("column ");
    const size_t start = column == std::string::npos ? what.find("] ") : what.find(": ", column);
    return start == std::string::npos ? what : what.substr(start + 2);
}

}  // namespace

template <typename Json>
Json parse_json(const std::string& text, const std::string& name) {
    std::istringstream in(text);
    const auto position = [&in] {
        return static_cast<size_t>(in.rdbuf()->pubseekoff(0, std::ios::cur, std::ios::in));
    };
    std::vector<std::set<std::string>> keys;  // of the objects that are open
    const auto watch = [&](int depth, typename Json::parse_event_t event, Json& parsed) {
        if (depth > kMaxJsonDepth) {
            throw Error(location(name, text, position()) + "nested deeper than " +
                        std::to_string(kMaxJsonDepth) + " levels");
        }
        if (event == Json::parse_event_t::object_start) keys.emplace_back();
        if (event == Json::parse_event_t::object_end) keys.pop_back();
        if (event == Json::parse_event_t::key && !keys.back().insert(parsed).second) {
            throw Error(location(name, text, position()) + "the key " + value_text(parsed) +
                        " appears twice in one object; keep one of the two");
        }
        return true;
    };
    try {
        return Json::parse(in, watch);
    } catch (const typename Json::parse_error& error) {
        const char at = error.byte > 0 && error.byte <= text.size() ? text[error.byte - 1] : ' ';
        throw Error(location(name, text, error.byte) + reason(error.what()) +
                    (at == '/' || at == '#' ? " (JSON has no comments)" : ""));
    } catch (const typename Json::exception& error) {  // a number beyond double
        throw Error(location(name, text, position()) + reason(error.what()));
    }
}

template <typename Json>
std::string value_text(const Json& value) {
    std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() <= kMaxValueText) return text;
    size_t cut = kMaxValueText;
    while (cut > 0 && (static_cast<unsigned char>(text[cut]) & 0xc0) == 0x80) --cut;
    return text.substr(0, cut) + "...";  // between two characters
}

template nlohmann::json parse_json(const std::string&, const std::string&);
template nlohmann::ordered_json parse_json(const std::string&, const std::string&);
template std::string value_text(const nlohmann::json&);
template std::string value_text(const nlohmann::ordered_json&);

}  // namespace lmo
