// Token files in every format, and the sequences cut from them.
#include <cstring>

#include "llmc/data/dataset.h"
#include "tests/fuzz/fuzz.h"

namespace lmo::fuzz {

namespace {

constexpr int64_t kLength = 3, kVocabulary = 1000;

void read_all(const std::string& path, TokenFormat format, std::string_view bytes) {
    const TokenFile file(path, format);
    const size_t size = static_cast<size_t>(file.size()) * sizeof(uint16_t);
    require(size <= bytes.size(), "more tokens than the file has");
    require(std::memcmp(file.tokens(), bytes.data() + (bytes.size() - size), size) == 0,
            "tokens that are not the end of the file");
    const Dataset set({path, path}, format, kLength, kVocabulary);
    require(set.tokens() == 2 * file.size(), "tokens of both files");
    int32_t inputs[kLength], targets[kLength];
    for (int64_t i = 0; i < set.sequences(); ++i) {
        set.copy_sequence(i, inputs, targets);
        for (int64_t t = 0; t < kLength; ++t) {
            require(inputs[t] >= 0 && inputs[t] < kVocabulary && targets[t] >= 0 &&
                        targets[t] < kVocabulary && (t == 0 || targets[t - 1] == inputs[t]),
                    "a sequence of other tokens");
        }
    }
}

}  // namespace

bool tokens(std::string_view input) {
    const std::string path = scratch("tokens.bin");
    write("tokens.bin", input);
    bool accepted = false;
    for (const TokenFormat format :
         {TokenFormat::automatic, TokenFormat::llmc, TokenFormat::uint16}) {
        accepted |= accepts([&] { read_all(path, format, input); }, {path});
    }
    return accepted;
}

}  // namespace lmo::fuzz
