#include "llmc/core/text.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "llmc/core/error.h"

namespace lmo {

namespace {

constexpr size_t kMaxMessage = 8000;  // bytes; more comes only from names made to be long

enum class Kind { plain, escaped, incomplete };

struct Character {
    Kind kind;
    size_t bytes;
};

bool changes_the_terminal(uint32_t code) {
    const bool control = code < 0x20 || (code >= 0x7f && code < 0xa0);
    const bool direction = code == 0x061c || code == 0x200e || code == 0x200f ||
                           (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
    const bool separator = code == 0x2028 || code == 0x2029;
    return (control && code != '\n' && code != '\t') || direction || separator;
}

// The first character of a text that is not empty, by strict UTF-8 (no overlong form, no
// surrogate); of what is invalid, one byte.
Character first_character(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
    const uint8_t lead = byte(0);
    if (lead < 0x80) return {changes_the_terminal(lead) ? Kind::escaped : Kind::plain, 1};
    if (lead < 0xc2 || lead > 0xf4) return {Kind::escaped, 1};
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    uint32_t code = lead & (0x7fu >> length);
    for (size_t i = 1; i < length; ++i) {
        if (i == text.size()) return {Kind::incomplete, 1};
        if ((byte(i) & 0xc0) != 0x80) return {Kind::escaped, 1};
        code = (code << 6) | (byte(i) & 0x3fu);
    }
    constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    const bool surrogate = code >= 0xd800 && code <= 0xdfff;
    if (code < kSmallest[length] || code > 0x10ffff || surrogate) return {Kind::escaped, 1};
    return {changes_the_terminal(code) ? Kind::escaped : Kind::plain, length};
}

void append(std::string& result, std::string_view character, bool escaped) {
    if (!escaped) {
        result += character;
        return;
    }
    char digits[5];
    for (const char byte : character) {
        std::snprintf(digits, sizeof digits, "\\x%02x", static_cast<uint8_t>(byte));
        result += digits;
    }
}

}  // namespace

std::string PrintableStream::add(std::string_view piece) {
    pending_ += piece;
    std::string result;
    size_t at = 0;
    while (at < pending_.size()) {
        const std::string_view rest = std::string_view(pending_).substr(at);
        const Character character = first_character(rest);
        if (character.kind == Kind::incomplete) break;
        append(result, rest.substr(0, character.bytes), character.kind == Kind::escaped);
        at += character.bytes;
    }
    pending_.erase(0, at);
    return result;
}

std::string PrintableStream::finish() {
    std::string result;
    append(result, pending_, true);
    pending_.clear();
    return result;
}

std::string wrapped(const std::string& text, size_t width, size_t indent) {
    std::string result;
    size_t column = 0;
    for (size_t at = 0; at < text.size();) {
        const size_t blanks = std::min(text.find_first_not_of(' ', at), text.size());
        const size_t end = std::min(text.find_first_of(" \n", blanks), text.size());
        if (column > indent && column + (end - at) > width) {
            result += "\n" + std::string(indent, ' ');
            column = indent;
            at = blanks;
        }
        result += text.substr(at, end - at);
        column += end - at;
        at = end;
        if (at < text.size() && text[at] == '\n') {
            result += text[at++];
            column = 0;
        }
    }
    return result;
}

std::string printable(std::string_view text) {
    PrintableStream stream;
    const std::string start = stream.add(text);
    return start + stream.finish();
}

std::string Error::fit_to_print(const std::string& message) {
    if (message.size() <= kMaxMessage) return printable(message);
    return printable(std::string_view(message).substr(0, kMaxMessage)) + "... (" +
           std::to_string(message.size() - kMaxMessage) + " more bytes)";
}

}  // namespace lmo
