// Counter-based random numbers: a value is a pure function of (seed, stream, index), so it does not
// depend on launch shape, shard, thread or rank. Philox4x32-10 (Salmon et al., SC 2011).
#pragma once

#include <array>
#include <cstdint>

namespace lmo {

// Four 32-bit words of the block `counter` under `key`.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// `stream` separates uses of one seed (a tensor, an epoch, a sampled text); `index` is the element.
uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index);
double random_uniform(uint64_t seed, uint64_t stream, uint64_t index);  // in (0, 1), 53 bits
double random_normal(uint64_t seed, uint64_t stream, uint64_t index);   // N(0, 1), Box-Muller

}  // namespace lmo
