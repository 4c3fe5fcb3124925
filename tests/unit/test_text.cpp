// What a hostile file may put on a terminal, and into JSON.
#include "llmc/core/text.h"

#include <gtest/gtest.h>

#include "llmc/core/error.h"
#include "llmc/core/json.h"

using namespace lmo;

TEST(Printable, CleanTextStays) {
    const std::string text = "tensor 'w': line 1\n\tna\xc3\xafve \xe2\x82\xac \xf0\x9f\x98\x80";
    EXPECT_EQ(printable(text), text);
    EXPECT_EQ(printable(""), "");
}

TEST(Printable, ControlCharactersAndInvalidBytesAreWritten) {
    EXPECT_EQ(printable("\x1b[2J\r\x07\x7f"), "\\x1b[2J\\x0d\\x07\\x7f");
    EXPECT_EQ(printable(std::string("a\0b", 3)), "a\\x00b");
    EXPECT_EQ(printable("\xc2\x9b"), "\\xc2\\x9b");           // CSI in one character
    EXPECT_EQ(printable("\xe2\x80\xae"), "\\xe2\\x80\\xae");  // right to left from here
    EXPECT_EQ(printable("\xff\xc3"), "\\xff\\xc3");
    EXPECT_EQ(printable("\xc0\xaf \xed\xa0\x80 \xf4\x90\x80\x80"),
              "\\xc0\\xaf \\xed\\xa0\\x80 \\xf4\\x90\\x80\\x80");
    EXPECT_EQ(printable("\xe2\x82x"), "\\xe2\\x82x");
}

TEST(Printable, AStreamHoldsBackHalfACharacter) {
    PrintableStream stream;
    EXPECT_EQ(stream.add("a\xe2"), "a");
    EXPECT_EQ(stream.add("\x82"), "");
    EXPECT_EQ(stream.add("\xac\xc2"), "\xe2\x82\xac");
    EXPECT_EQ(stream.add("\x9b"), "\\xc2\\x9b");
    EXPECT_EQ(stream.add("\xf0\x9f"), "");
    EXPECT_EQ(stream.finish(), "\\xf0\\x9f");
    EXPECT_EQ(stream.finish(), "");
}

TEST(Printable, ErrorsAreCleanAndNotEndless) {
    EXPECT_STREQ(Error("tensor '\x1b[31m'").what(), "tensor '\\x1b[31m'");
    const std::string what = Error(std::string(100000, 'x')).what();
    EXPECT_LT(what.size(), 9000u);
    EXPECT_NE(what.find("92000 more bytes"), std::string::npos);
}

TEST(StrictJson, RefusesWhatNamesNoSingleValue) {
    const auto error = [](const std::string& text) {
        try {
            parse_json<nlohmann::json>(text, "x");
        } catch (const Error& error) {
            return std::string(error.what());
        }
        return std::string("no error");
    };
    const std::string open(65, '['), close(65, ']');  // 64 levels inside of the outermost
    EXPECT_EQ(error(open + close), "no error");
    EXPECT_NE(error("[" + open + close + "]").find("nested deeper than 64"), std::string::npos);
    EXPECT_NE(error(std::string(1 << 20, '[')).find("nested deeper than 64"), std::string::npos);
    EXPECT_NE(
        error(R"({"a": 1, "a": 2})").find("x: line 1, column 12: the key \"a\" appears twice"),
        std::string::npos);
    EXPECT_NE(error("[1e999]").find("number overflow"), std::string::npos);
    EXPECT_NE(error("\"\xff\"").find("x: line 1"), std::string::npos);
}

TEST(StrictJson, ValuesAreCutBetweenCharacters) {
    std::string text;
    for (int i = 0; i < 200; ++i) text += "\xe2\x82\xac";
    const std::string shown = value_text(nlohmann::json(text));
    EXPECT_LE(shown.size(), 203u);
    EXPECT_EQ(printable(shown), shown);
}

TEST(Wrapped, BreaksAtBlanksOnly) {
    EXPECT_EQ(wrapped("one two three", 80, 4), "one two three");
    EXPECT_EQ(wrapped("one two three", 7, 2), "one two\n  three");
    EXPECT_EQ(wrapped("one two three", 6, 2), "one\n  two\n  three");
    EXPECT_EQ(wrapped("abc  verylongword b", 6, 2), "abc\n  verylongword\n  b");
    EXPECT_EQ(wrapped("  in one\n\nnew line ", 6, 0), "  in\none\n\nnew\nline ");
    EXPECT_EQ(wrapped("label      verylongword", 8, 11), "label      verylongword");
    EXPECT_EQ(wrapped("", 8, 2), "");
}
