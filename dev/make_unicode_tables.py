#!/usr/bin/env python3
"""Writes llmc/data/unicode_tables.h: the code points of Unicode's letters (category L*), numbers
(N*) and white space, as sorted ranges. Run from the repository root:

    python3 dev/make_unicode_tables.py
"""
import sys
import unicodedata

VERSION = unicodedata.unidata_version
# The property White_Space, which Python's unicodedata does not have. str.isspace() is this and the
# separators U+001C .. U+001F, which regular expressions' \s does not match.
NOT_SPACE = range(0x1C, 0x20)


def ranges(wanted):
    found = []
    for code in range(sys.maxunicode + 1):
        if not wanted(code):
            continue
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


def table(name, found):
    lines, line = [], "   "
    for first, last in found:
        item = f" {{0x{first:x}, 0x{last:x}}},"
        if len(line) + len(item) > 100:
            lines.append(line)
            line = "   "
        line += item
    return f"inline constexpr CodePointRange {name}[] = {{\n" + "\n".join(lines + [line]) + "\n};\n"


def main():
    category = lambda code: unicodedata.category(chr(code))[0]
    text = f"""\
// Ranges of Unicode {VERSION}: letters (categories L*), numbers (N*), white space.
// Written by dev/make_unicode_tables.py; do not edit.
#pragma once

#include <cstdint>

namespace lmo {{

struct CodePointRange {{
    uint32_t first, last;
}};

// clang-format off
{table("kLetterRanges", ranges(lambda code: category(code) == "L"))}
{table("kNumberRanges", ranges(lambda code: category(code) == "N"))}
{table("kSpaceRanges", ranges(lambda code: chr(code).isspace() and code not in NOT_SPACE))}
// clang-format on
}}  // namespace lmo
"""
    with open("llmc/data/unicode_tables.h", "w", encoding="ascii") as file:
        file.write(text)


main()
