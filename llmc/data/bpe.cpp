#include "llmc/data/bpe.h"

#include <queue>
#include <tuple>

#include "llmc/data/split.h"

namespace lmo {
namespace {

// A merge that was possible when it was found; stale once one of its two tokens has changed.
struct Candidate {
    int32_t rank, id;  // of the merged token
    int left, right;   // positions of the two tokens
    int32_t left_id, right_id;
    bool operator<(const Candidate& other) const {  // the queue's top is its greatest
        return std::tie(other.rank, other.left) < std::tie(rank, left);
    }
};

struct Token {
    int32_t id;  // -1: merged into the one before
    int previous, next;
};

}  // namespace

std::vector<int32_t> BpeTokenizer::encode(std::string_view text) const {
    std::vector<int32_t> ids;
    for (const std::string_view word : split_gpt2(text)) encode_word(word, ids);
    return ids;
}

// A list of tokens, at first one a byte, and a queue of merges: n log n, so that a megabyte of
// spaces is no trap.
void BpeTokenizer::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
    if (vocabulary_.whole_words) {
        const auto found = vocabulary_.id.find(std::string(word));
        if (found != vocabulary_.id.end()) {
            ids.push_back(found->second);
            return;
        }
    }
    const int count = static_cast<int>(word.size());
    std::vector<Token> tokens;
    tokens.reserve(word.size());
    for (int i = 0; i < count; ++i)
        tokens.push_back({vocabulary_.byte_id[static_cast<uint8_t>(word[static_cast<size_t>(i)])],
                          i - 1, i + 1});

    std::priority_queue<Candidate> queue;
    const auto consider = [&](int left, int right) {
        if (left < 0 || right >= count) return;
        const auto found =
            vocabulary_.merges.find(BpeVocabulary::pair_key(tokens[left].id, tokens[right].id));
        if (found != vocabulary_.merges.end())
            queue.push({found->second.rank, found->second.id, left, right, tokens[left].id,
                        tokens[right].id});
    };
    for (int i = 0; i + 1 < count; ++i) consider(i, i + 1);

    while (!queue.empty()) {
        const Candidate best = queue.top();
        queue.pop();
        Token& left = tokens[best.left];
        Token& right = tokens[best.right];
        if (left.id != best.left_id || right.id != best.right_id || left.next != best.right)
            continue;
        left.id = best.id;
        left.next = right.next;
        right.id = -1;
        if (left.next < count) tokens[left.next].previous = best.left;
        consider(left.previous, best.left);
        consider(best.left, left.next);
    }
    for (int i = 0; i < count; i = tokens[i].next) ids.push_back(tokens[i].id);
}

std::string BpeTokenizer::decode(const std::vector<int32_t>& ids) const {
    std::string text;
    for (const int32_t id : ids)
        if (id >= 0 && id < vocab_size()) text += vocabulary_.text[static_cast<size_t>(id)];
    return text;
}

}  // namespace lmo
