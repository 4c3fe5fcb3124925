// Text that came from files, made fit for a terminal: what is in a file may want to move the cursor,
// clear the screen or reverse the direction of what follows.
#pragma once

#include <string>
#include <string_view>

namespace lmo {

// The same text with every byte of a control character (all but newline and tab), of a character
// that changes the direction of text, and of what is not valid UTF-8 written as \xNN.
std::string printable(std::string_view text);

// The text with newlines in place of some blanks, so that no line has more than `width` bytes where
// its words allow; lines that this begins start with `indent` blanks.
std::string wrapped(const std::string& text, size_t width, size_t indent);

// printable() of a text that comes in pieces, which may end within a character.
class PrintableStream {
  public:
    std::string add(std::string_view piece);  // what can be shown by now
    std::string finish();                     // the rest

  private:
    std::string pending_;
};

}  // namespace lmo
