// The two file formats of byte-level BPE vocabularies: merges + ids (GPT-2, Hugging Face) and
// .tiktoken.
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <sstream>

#include "llmc/core/error.h"
#include "llmc/core/json.h"
#include "llmc/data/bpe.h"

namespace lmo {
namespace {

// Sane limits: ids index a table, and every cut of a token is looked up. Vocabularies in use end at
// 262144 tokens, the longest of them at 128 bytes.
constexpr int32_t kLargestId = (1 << 18) - 1;
constexpr size_t kMaxTokenBytes = 512;
constexpr const char* kEndOfText = "<|endoftext|>";

std::ifstream open_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(path + ": cannot open the vocabulary: " + std::strerror(errno));
    return file;
}

// A whole file, of a size that JSON may have.
std::string read_text(const std::string& path) {
    std::ifstream file = open_file(path);
    std::string text;
    char piece[4096];
    while (file.read(piece, sizeof piece), file.gcount() > 0) {
        text.append(piece, static_cast<size_t>(file.gcount()));
        if (text.size() > kMaxJsonBytes)
            throw Error(path + ": more than " + std::to_string(kMaxJsonBytes) +
                        " bytes; expected a vocabulary");
    }
    return text;
}

Error at_line(const std::string& path, int64_t line, const std::string& what) {
    return Error(path + ": line " + std::to_string(line) + ": " + what);
}

bool read_line(std::ifstream& file, std::string& line) {
    if (!std::getline(file, line)) return false;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    return true;
}

void add_token(BpeVocabulary& vocabulary, const std::string& text, int32_t id) {
    if (static_cast<size_t>(id) >= vocabulary.text.size())
        vocabulary.text.resize(static_cast<size_t>(id) + 1);
    vocabulary.text[static_cast<size_t>(id)] = text;
    vocabulary.id[text] = id;
}

void find_bytes(BpeVocabulary& vocabulary, const std::string& path) {
    for (int byte = 0; byte < 256; ++byte) {
        const auto found = vocabulary.id.find(std::string(1, static_cast<char>(byte)));
        if (found == vocabulary.id.end())
            throw Error(path + ": no token for the single byte " + std::to_string(byte) +
                        "; expected a byte-level vocabulary with all 256");
        vocabulary.byte_id[static_cast<size_t>(byte)] = found->second;
    }
}

// GPT-2 writes byte b as the character of code b where that is printable in Latin-1, and the others
// in order as 256, 257, ...; the keys here are those characters in UTF-8.
std::map<std::string, char> byte_alphabet() {
    std::map<std::string, char> alphabet;
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
        const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
        const int code = printable ? byte : next++;
        std::string character(1, static_cast<char>(code));
        if (code >= 0x80)
            character = {static_cast<char>(0xc0 | (code >> 6)),
                         static_cast<char>(0x80 | (code & 63))};
        alphabet[character] = static_cast<char>(byte);
    }
    return alphabet;
}

// The bytes that a written token stands for; nothing if it has a character outside the alphabet.
std::optional<std::string> to_bytes(const std::map<std::string, char>& alphabet,
                                    const std::string& written) {
    std::string bytes;
    for (size_t at = 0; at < written.size();) {
        const size_t length = static_cast<uint8_t>(written[at]) >= 0x80 ? 2 : 1;
        const auto found = alphabet.find(written.substr(at, length));
        if (found == alphabet.end()) return std::nullopt;
        bytes += found->second;
        at += length;
    }
    return bytes;
}

void read_ids(BpeVocabulary& vocabulary, const std::map<std::string, char>& alphabet,
              const std::string& path) {
    const auto json = parse_json<nlohmann::json>(
        read_text(path), path + ": not a JSON object of token to id");
    if (!json.is_object())
        throw Error(path +
                    ": not a JSON object of token to id; the file is damaged or not a "
                    "vocabulary");
    std::vector<bool> used;
    for (const auto& [written, value] : json.items()) {
        if (!value.is_number_integer() || value.get<int64_t>() < 0 ||
            value.get<int64_t>() > kLargestId)
            throw Error(path + ": token \"" + written + "\": id " + value_text(value) +
                        ", expected an integer from 0 to " + std::to_string(kLargestId));
        const size_t id = value.get<size_t>();
        if (id >= used.size()) used.resize(id + 1);
        if (used[id])
            throw Error(path + ": token \"" + written + "\": id " + std::to_string(id) +
                        " is given twice");
        used[id] = true;
        const auto bytes = to_bytes(alphabet, written);
        if (bytes && bytes->size() > kMaxTokenBytes)
            throw Error(path + ": the token of id " + std::to_string(id) + " has more than " +
                        std::to_string(kMaxTokenBytes) + " bytes");
        if (bytes && !bytes->empty() && written != kEndOfText)
            add_token(vocabulary, *bytes, static_cast<int32_t>(id));
    }
    if (vocabulary.text.size() < used.size()) vocabulary.text.resize(used.size());
}

int base64_value(char character) {
    static const char* const kDigits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char* found = character == '\0' ? nullptr : std::strchr(kDigits, character);
    return found == nullptr ? -1 : static_cast<int>(found - kDigits);
}

std::optional<std::string> decode_base64(std::string digits) {
    if (digits.empty() || digits.size() % 4 != 0) return std::nullopt;
    for (int pad = 0; pad < 2 && digits.back() == '='; ++pad) digits.pop_back();
    std::string bytes;
    uint32_t buffer = 0;
    int bits = 0;
    for (const char digit : digits) {
        const int value = base64_value(digit);
        if (value < 0) return std::nullopt;
        buffer = (buffer << 6) | static_cast<uint32_t>(value);
        bits += 6;
        if (bits < 8) continue;
        bits -= 8;
        bytes += static_cast<char>((buffer >> bits) & 0xff);
    }
    return bytes;
}

// Every way to cut a token into two tokens is a merge of its rank.
void derive_merges(BpeVocabulary& vocabulary) {
    for (const auto& [text, id] : vocabulary.id) {
        for (size_t cut = 1; cut < text.size(); ++cut) {
            const auto left = vocabulary.id.find(text.substr(0, cut));
            if (left == vocabulary.id.end()) continue;
            const auto right = vocabulary.id.find(text.substr(cut));
            if (right == vocabulary.id.end()) continue;
            vocabulary.merges[BpeVocabulary::pair_key(left->second, right->second)] = {id, id};
        }
    }
}

}  // namespace

BpeVocabulary read_merges(const std::string& merges_path, const std::string& ids_path) {
    const auto alphabet = byte_alphabet();
    BpeVocabulary vocabulary;
    read_ids(vocabulary, alphabet, ids_path);
    find_bytes(vocabulary, ids_path);

    const auto find = [&](const std::string& written) -> const int32_t* {
        const auto bytes = to_bytes(alphabet, written);
        if (!bytes) return nullptr;
        const auto found = vocabulary.id.find(*bytes);
        return found == vocabulary.id.end() ? nullptr : &found->second;
    };
    std::ifstream file = open_file(merges_path);
    std::string line;
    int32_t rank = 0;
    for (int64_t number = 1; read_line(file, line); ++number) {
        if (line.empty() || (number == 1 && line.rfind("#version", 0) == 0)) continue;
        std::istringstream words(line);
        std::string left, right, more;
        if (!(words >> left >> right) || (words >> more))
            throw at_line(merges_path, number, "expected two tokens, as in \"t h\"");
        for (const std::string& token : {left, right, left + right})
            if (find(token) == nullptr)
                throw at_line(merges_path, number,
                              "token \"" + token + "\" is not in " + ids_path +
                                  "; the two files do not belong together");
        // A pair that is listed again keeps its first rank.
        vocabulary.merges.try_emplace(BpeVocabulary::pair_key(*find(left), *find(right)),
                                      BpeVocabulary::Merge{rank++, *find(left + right)});
    }
    return vocabulary;
}

BpeVocabulary read_tiktoken(const std::string& path) {
    BpeVocabulary vocabulary;
    vocabulary.whole_words = true;
    std::ifstream file = open_file(path);
    std::string line;
    for (int64_t number = 1; read_line(file, line); ++number) {
        if (line.empty()) continue;
        std::istringstream words(line);
        std::string digits, more;
        int64_t rank = -1;
        if (!(words >> digits >> rank) || (words >> more) || rank < 0 || rank > kLargestId)
            throw at_line(path, number, "expected a token in base64, a space and its rank");
        const auto bytes = decode_base64(digits);
        if (!bytes || bytes->empty())
            throw at_line(path, number, "\"" + digits + "\" is not base64 of a token");
        if (bytes->size() > kMaxTokenBytes)
            throw at_line(path, number,
                          "a token of more than " + std::to_string(kMaxTokenBytes) + " bytes");
        const auto id = static_cast<size_t>(rank);
        if (vocabulary.id.count(*bytes) != 0 ||
            (id < vocabulary.text.size() && !vocabulary.text[id].empty()))
            throw at_line(path, number, "this token or rank was given before");
        add_token(vocabulary, *bytes, static_cast<int32_t>(rank));
    }
    find_bytes(vocabulary, path);
    derive_merges(vocabulary);
    vocabulary.text.emplace_back();  // <|endoftext|>
    return vocabulary;
}

}  // namespace lmo
