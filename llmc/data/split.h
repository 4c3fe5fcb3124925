// Cuts text into the pieces that GPT-2's byte-level BPE encodes one by one.
#pragma once

#include <string_view>
#include <vector>

namespace lmo {

// The matches of GPT-2's pattern (Radford et al. 2019)
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// in order; they cover the text. A byte that is no part of valid UTF-8 counts as one symbol.
std::vector<std::string_view> split_gpt2(std::string_view text);

}  // namespace lmo
