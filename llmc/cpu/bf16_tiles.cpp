// See bf16_tiles.h. Compiled for AVX512-BF16 (Makefile), so it calls no inline function of another
// header; bf16_tiles() is in dispatch.cpp.
//
// vdpbf16ps adds the products of two pairs of bf16 to each of 16 sums. A's pairs lie side by side
// in its rows and are broadcast; B is packed so that the pairs of 16 columns are one vector.
#include "llmc/cpu/bf16_tiles.h"

#include <immintrin.h>

namespace lmo::cpu::avx512bf16 {
namespace {

constexpr int64_t lanes = 16, block_rows = bf16_block_rows;

inline __m512i load(const void* from) { return _mm512_loadu_si512(from); }
inline void store(void* to, __m512i value) { _mm512_storeu_si512(to, value); }

inline __m512 widen(const uint16_t* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline __m256i narrow(__m512 value) { return (__m256i)_mm512_cvtneps_pbh(value); }
inline void store(uint16_t* to, __m256i value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
}

// Of 16 x 16 elements of 32 bits: pairs of rows, then of pairs, then of 128-bit lanes.
inline void transpose(__m512i (&r)[lanes]) {
    __m512i t[lanes];
    for (int64_t i = 0; i < lanes; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int64_t i = 0; i < lanes; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int64_t i = 0; i < 4;
         ++i) {  // r[4 q + i]: column 4 l + i of rows 4 q .. 4 q + 3 in lane l
        const __m512i low02 = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        const __m512i low13 = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        const __m512i high02 = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        const __m512i high13 = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
        t[i] = _mm512_shuffle_i32x4(low02, high02, 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(low02, high02, 0xdd);
        t[4 + i] = _mm512_shuffle_i32x4(low13, high13, 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(low13, high13, 0xdd);
    }
    for (int64_t i = 0; i < lanes; ++i) r[i] = t[i];
}

// packed [depth / 2, vectors * 16] pairs: elements k, k + 1 of each column of B.
template <int64_t vectors>
void pack(const Bf16Panel& p, int64_t first, int64_t depth, uint32_t* packed) {
    constexpr int64_t width = vectors * lanes;
    if (p.transposed) {
        for (int64_t k = 0; k < depth; k += 2 * lanes) {
            for (int64_t v = 0; v < vectors; ++v) {
                const uint16_t* from = p.b + (p.column + v * lanes) * p.b_stride + first + k;
                __m512i rows[lanes];
                for (int64_t i = 0; i < lanes; ++i) rows[i] = load(from + i * p.b_stride);
                transpose(rows);
                uint32_t* to = packed + k / 2 * width + v * lanes;
                for (int64_t i = 0; i < lanes; ++i) store(to + i * width, rows[i]);
            }
        }
        return;
    }
    for (int64_t k = 0; k < depth; k += 2) {
        const uint16_t* from = p.b + (first + k) * p.b_stride + p.column;
        for (int64_t v = 0; v < vectors; ++v) {
            const __m512i low = _mm512_castps_si512(widen(from + v * lanes));
            const __m512i high = _mm512_castps_si512(widen(from + p.b_stride + v * lanes));
            store(packed + k / 2 * width + v * lanes,
                  _mm512_or_si512(_mm512_srli_epi32(low, 16), high));
        }
    }
}

template <int64_t vectors>
struct Sums {
    __m512 at[block_rows][vectors];
};

// sums += a [block_rows, depth] B
template <int64_t vectors>
inline void multiply_block(const uint16_t* a, int64_t stride, const uint32_t* packed, int64_t depth,
                           Sums<vectors>& sums) {
    Sums<vectors> s = sums;
    for (int64_t k = 0; k < depth; k += 2) {
        __m512i b[vectors];
        for (int64_t v = 0; v < vectors; ++v) b[v] = load(packed + v * lanes);
        for (int64_t i = 0; i < block_rows; ++i) {
            int32_t pair;
            __builtin_memcpy(&pair, a + i * stride + k, sizeof pair);
            const __m512i both = _mm512_set1_epi32(pair);
            for (int64_t v = 0; v < vectors; ++v) {
                s.at[i][v] = _mm512_dpbf16_ps(s.at[i][v], (__m512bh)both, (__m512bh)b[v]);
            }
        }
        packed += vectors * lanes;
    }
    sums = s;
}

// 8 rows of 16 elements, at `to` by columns.
inline void store_transposed(const __m256i (&r)[block_rows], uint16_t* to, int64_t stride) {
    __m256i s[block_rows], t[block_rows];
    for (int64_t i = 0; i < 4; ++i) {
        s[2 * i] = _mm256_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
        s[2 * i + 1] = _mm256_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
    }
    for (int64_t i = 0; i < 2; ++i) {
        t[4 * i] = _mm256_unpacklo_epi32(s[4 * i], s[4 * i + 2]);
        t[4 * i + 1] = _mm256_unpackhi_epi32(s[4 * i], s[4 * i + 2]);
        t[4 * i + 2] = _mm256_unpacklo_epi32(s[4 * i + 1], s[4 * i + 3]);
        t[4 * i + 3] = _mm256_unpackhi_epi32(s[4 * i + 1], s[4 * i + 3]);
    }
    for (int64_t i = 0; i < 4; ++i) {  // columns 2 i and 2 i + 1, and 8 further on
        const __m256i even = _mm256_unpacklo_epi64(t[i], t[4 + i]);
        const __m256i odd = _mm256_unpackhi_epi64(t[i], t[4 + i]);
        const auto put = [&](int64_t column, __m128i value) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + column * stride), value);
        };
        put(2 * i, _mm256_castsi256_si128(even));
        put(2 * i + 1, _mm256_castsi256_si128(odd));
        put(2 * i + 8, _mm256_extracti128_si256(even, 1));
        put(2 * i + 9, _mm256_extracti128_si256(odd, 1));
    }
}

// Rows [row, row + block_rows) of the panel, from their sums.
template <int64_t vectors>
inline void finish(const Bf16Panel& p, int64_t row, const Sums<vectors>& sums) {
    const bool mirror = p.symmetric && row >= p.column + vectors * lanes;
    const __m512 alpha = _mm512_set1_ps(p.alpha), beta = _mm512_set1_ps(p.beta);
    for (int64_t v = 0; v < vectors; ++v) {
        const int64_t column = p.column + v * lanes;
        __m256i rounded[block_rows];
        for (int64_t i = 0; i < block_rows; ++i) {
            __m512 value = _mm512_mul_ps(alpha, sums.at[i][v]);
            if (p.d) {
                value = _mm512_fmadd_ps(beta, widen(p.d + (row + i) * p.d_stride + column), value);
            }
            rounded[i] = narrow(value);
            store(p.c + (row + i) * p.c_stride + column, rounded[i]);
        }
        if (mirror) store_transposed(rounded, p.c + column * p.c_stride + row, p.c_stride);
    }
}

template <int64_t vectors>
void multiply_panel(const Bf16Panel& p) {
    uint32_t* packed = static_cast<uint32_t*>(p.scratch);
    auto* kept =
        reinterpret_cast<Sums<vectors>*>(packed + bf16_panel_depth / 2 * bf16_panel_columns);
    const int64_t top = p.symmetric ? p.column : 0;
    for (int64_t first = 0; first < p.k; first += bf16_panel_depth) {
        const int64_t rest = p.k - first;
        const int64_t depth = rest < bf16_panel_depth ? rest : bf16_panel_depth;
        pack<vectors>(p, first, depth, packed);
        for (int64_t row = top; row < p.m; row += block_rows) {
            Sums<vectors>& outside = kept[row / block_rows];
            Sums<vectors> sums;
            if (first == 0) {
                for (auto& line : sums.at) {
                    for (__m512& sum : line) sum = _mm512_setzero_ps();
                }
            } else {
                sums = outside;
            }
            multiply_block<vectors>(p.a + row * p.a_stride + first, p.a_stride, packed, depth,
                                    sums);
            if (depth == rest) {
                finish<vectors>(p, row, sums);
            } else {
                outside = sums;
            }
        }
    }
}

void multiply(const Bf16Panel& p) {
    if (p.width == 3 * lanes) return multiply_panel<3>(p);
    p.width == 2 * lanes ? multiply_panel<2>(p) : multiply_panel<1>(p);
}

inline __mmask16 first_lanes(int64_t count) {
    return static_cast<__mmask16>(count >= lanes ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

// Elements (i, j) and on of X, of which x has them: row j of x by columns where it is tall.
void bring_in_tall(const Bf16Border& b, __m512 divisor, int64_t i, int64_t j) {
    __m512i tile[lanes];
    for (int64_t c = 0; c < lanes; ++c) {
        const __mmask16 mask = j + c < b.columns ? first_lanes(b.rows - i) : __mmask16(0);
        const __m512 x = _mm512_maskz_loadu_ps(mask, b.x + (mask ? (j + c) * b.rows + i : 0));
        tile[c] = _mm512_castps_si512(_mm512_maskz_div_ps(mask, x, divisor));
    }
    transpose(tile);
    for (int64_t r = 0; r < lanes; ++r) {
        store(b.padded + (i + r) * b.stride + j, narrow(_mm512_castsi512_ps(tile[r])));
    }
}

void bring_in(const Bf16Border& b, double divisor, int64_t begin, int64_t end) {
    const __m512 by = _mm512_set1_ps(static_cast<float>(divisor));
    const int64_t padded = (b.columns + bf16_padding - 1) / bf16_padding * bf16_padding;
    if (b.tall) {
        for (int64_t j = 0; j < padded; j += lanes) {
            for (int64_t i = begin; i < end; i += lanes) bring_in_tall(b, by, i, j);
        }
        return;
    }
    for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < padded; j += lanes) {
            const __mmask16 mask = i < b.rows ? first_lanes(b.columns - j) : __mmask16(0);
            const __m512 x = _mm512_maskz_loadu_ps(mask, b.x + (mask ? i * b.columns + j : 0));
            store(b.padded + i * b.stride + j, narrow(_mm512_maskz_div_ps(mask, x, by)));
        }
    }
}

void write_back_tall(const Bf16Border& b, int64_t i, int64_t j) {
    __m512i tile[lanes];
    for (int64_t r = 0; r < lanes; ++r) {
        tile[r] = _mm512_castps_si512(widen(b.padded + (i + r) * b.stride + j));
    }
    transpose(tile);
    for (int64_t c = 0; c < lanes && j + c < b.columns; ++c) {
        _mm512_mask_storeu_ps(b.x + (j + c) * b.rows + i, first_lanes(b.rows - i),
                              _mm512_castsi512_ps(tile[c]));
    }
}

void write_back(const Bf16Border& b, int64_t begin, int64_t end) {
    const int64_t last = end < b.rows ? end : b.rows;
    if (b.tall) {
        for (int64_t j = 0; j < b.columns; j += lanes) {
            for (int64_t i = begin; i < last; i += lanes) write_back_tall(b, i, j);
        }
        return;
    }
    for (int64_t i = begin; i < last; ++i) {
        for (int64_t j = 0; j < b.columns; j += lanes) {
            _mm512_mask_storeu_ps(b.x + i * b.columns + j, first_lanes(b.columns - j),
                                  widen(b.padded + i * b.stride + j));
        }
    }
}

}  // namespace

extern const Bf16Tiles tiles = {multiply, bring_in, write_back};

}  // namespace lmo::cpu::avx512bf16
