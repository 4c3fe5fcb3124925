#include "llmc/core/random.h"

#include <cmath>

namespace lmo {

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t left = 0xD2511F53ull * counter[0];
        const uint64_t right = 0xCD9E8D57ull * counter[2];
        counter = {
            static_cast<uint32_t>(right >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(right),
            static_cast<uint32_t>(left >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(left)};
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return counter;
}

namespace {

std::array<uint32_t, 4> block(uint64_t seed, uint64_t stream, uint64_t index) {
    return philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                   static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                  {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

double to_uniform(uint32_t high, uint32_t low) {
    const uint64_t bits = ((static_cast<uint64_t>(high) << 32) | low) >> 11;
    return (static_cast<double>(bits) + 0.5) * 0x1.0p-53;
}

}  // namespace

uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
    const auto words = block(seed, stream, index);
    return (static_cast<uint64_t>(words[0]) << 32) | words[1];
}

double random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    const auto words = block(seed, stream, index);
    return to_uniform(words[0], words[1]);
}

double random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    const auto words = block(seed, stream, index);
    const double radius = std::sqrt(-2.0 * std::log(to_uniform(words[0], words[1])));
    return radius * std::cos(2.0 * M_PI * to_uniform(words[2], words[3]));
}

}  // namespace lmo
