#include "llmc/data/split.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "llmc/data/unicode_tables.h"

namespace lmo {
namespace {

enum class Kind { letter, number, space, symbol, end };

struct CodePoint {
    Kind kind = Kind::end;
    size_t bytes = 0;
};

template <size_t N>
bool contains(const CodePointRange (&ranges)[N], uint32_t code) {
    const auto after = std::upper_bound(
        std::begin(ranges), std::end(ranges), code,
        [](uint32_t value, const CodePointRange& range) { return value < range.first; });
    return after != std::begin(ranges) && code <= std::prev(after)->last;
}

Kind kind_of(uint32_t code) {
    if (contains(kLetterRanges, code)) return Kind::letter;
    if (contains(kNumberRanges, code)) return Kind::number;
    if (contains(kSpaceRanges, code)) return Kind::space;
    return Kind::symbol;
}

// The code point at byte `at`: strict UTF-8 (no overlong form, no surrogate).
CodePoint code_point(std::string_view text, size_t at) {
    if (at >= text.size()) return {};
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
    const uint8_t lead = byte(0);
    if (lead < 0x80) return {kind_of(lead), 1};
    const CodePoint invalid{Kind::symbol, 1};
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || at + length > text.size()) return invalid;
    uint32_t code = lead & (0x7fu >> length);
    for (size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xc0) != 0x80) return invalid;
        code = (code << 6) | (byte(i) & 0x3fu);
    }
    constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < kSmallest[length] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
        return invalid;
    return {kind_of(code), length};
}

size_t contraction(std::string_view rest) {
    for (const char* suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
        const std::string_view word(suffix);
        if (rest.substr(0, word.size()) == word) return word.size();
    }
    return 0;
}

// Bytes of the match that begins at `start`.
size_t match(std::string_view text, size_t start) {
    if (const size_t bytes = contraction(text.substr(start)); bytes != 0) return bytes;

    size_t at = start;
    if (text[start] == ' ' && code_point(text, start + 1).kind != Kind::end &&
        code_point(text, start + 1).kind != Kind::space)
        ++at;  // one leading space belongs to the word
    const Kind kind = code_point(text, at).kind;
    size_t last = at;  // start of the last code point in the run
    CodePoint next = code_point(text, at);
    for (; next.kind == kind; next = code_point(text, at)) {
        last = at;
        at += next.bytes;
    }
    // White space before a word leaves its last character to that word, or to a match of its own.
    if (kind == Kind::space && next.kind != Kind::end && last != start) at = last;
    return at - start;
}

}  // namespace

std::vector<std::string_view> split_gpt2(std::string_view text) {
    std::vector<std::string_view> pieces;
    for (size_t at = 0; at < text.size();) {
        const size_t bytes = match(text, at);
        pieces.push_back(text.substr(at, bytes));
        at += bytes;
    }
    return pieces;
}

}  // namespace lmo
