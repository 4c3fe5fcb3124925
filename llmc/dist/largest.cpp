#include "llmc/dist/largest.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <functional>
#include <numeric>

namespace lmo {

namespace {

// The bits without the sign are ordered like the magnitudes.
inline uint32_t key_of(float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffffu; }
inline uint64_t key_of(double x) { return std::bit_cast<uint64_t>(x) & ~(uint64_t{1} << 63); }

// The upper bits of a key that is `Bits` wide: the exponent, and of a float four bits more. The
// counts fit into the first cache.
constexpr int kBucketBits = 12;

// How many of the elements with the key `threshold` are kept, besides all with a higher one.
template <class Key>
struct Cut {
    Key threshold = 0;
    int64_t equal = 0;
    bool all_equal = false;  // there are no more than these
};

template <class T>
auto find_cut(const T* x, int64_t count, int64_t kept) {
    using Key = decltype(key_of(T{}));
    constexpr int shift = static_cast<int>(sizeof(Key)) * 8 - 1 - kBucketBits;
    std::vector<int64_t> sizes(size_t{1} << kBucketBits);
    for (int64_t i = 0; i < count; ++i) ++sizes[static_cast<size_t>(key_of(x[i]) >> shift)];
    size_t bucket = sizes.size() - 1;
    int64_t rest = kept;  // to be found in `bucket` and below
    while (sizes[bucket] < rest) rest -= sizes[bucket--];

    std::vector<Key> keys(static_cast<size_t>(sizes[bucket]) + 1);  // one to spare: no branches
    size_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
        const Key key = key_of(x[i]);
        keys[found] = key;
        found += static_cast<size_t>(key >> shift) == bucket;
    }
    keys.resize(found);
    const auto last = keys.begin() + (rest - 1);
    std::nth_element(keys.begin(), last, keys.end(), std::greater<>());
    Cut<Key> cut;
    cut.threshold = *last;
    cut.equal = rest - std::count_if(keys.begin(), last, [&](Key key) { return key > *last; });
    cut.all_equal = std::find(last + 1, keys.end(), *last) == keys.end();
    return cut;
}

}  // namespace

template <class T>
std::vector<int64_t> largest(const T* x, int64_t count, int64_t kept) {
    assert(kept >= 1 && kept <= count);
    std::vector<int64_t> at(static_cast<size_t>(kept) + 1);  // one to spare
    if (kept == count) {
        at.pop_back();
        std::iota(at.begin(), at.end(), int64_t{0});
        return at;
    }
    const auto cut = find_cut(x, count, kept);
    int64_t last_equal = count - 1;  // the last position at which the threshold is kept
    if (!cut.all_equal) {
        int64_t left = cut.equal;
        for (last_equal = 0;; ++last_equal) {
            left -= key_of(x[last_equal]) == cut.threshold;
            if (left == 0) break;
        }
    }
    size_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
        const auto key = key_of(x[i]);
        at[found] = i;
        found += (key > cut.threshold) | ((key == cut.threshold) & (i <= last_equal));
    }
    assert(found == static_cast<size_t>(kept));
    at.pop_back();
    return at;
}

template std::vector<int64_t> largest(const float*, int64_t, int64_t);
template std::vector<int64_t> largest(const double*, int64_t, int64_t);

}  // namespace lmo
