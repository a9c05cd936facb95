// Sixteen lanes in one AVX-512 register, with VNNI dot products.

constexpr int half_sums = 16;
constexpr int most_sums = 16;
constexpr int peak_chains = 12;
constexpr int max_tokens = 8, streamed_tokens = 8, direct_tokens = 32;
constexpr int block_tokens = 6, block_tiles = 2;
constexpr int score_rows = 8, score_vectors = 2, value_rows = 8, value_vectors = 2;
constexpr int pair_rows = 8, pair_vectors = 2, four_rows = 8;
constexpr int biased_offset = 0;
// An integer below 2^22 added to these bits is the float 1.5 x 2^23 + that integer: no conversion is needed.
constexpr int32_t sum_bias = 0x4B400000;
constexpr float biased_zero = 12582912.0f;
constexpr bool fields_in_place = true;

struct Floats {
    __m512 v;
};
struct Ints {
    __m512i v;
};
struct Bytes {
    __m512i v;
};
struct Word {
    __m512i v;
};

inline Floats set(float x) { return {_mm512_set1_ps(x)}; }
inline Floats zero() { return {_mm512_setzero_ps()}; }
inline Floats load(const float *p) { return {_mm512_loadu_ps(p)}; }
inline void store(float *p, Floats x) { _mm512_storeu_ps(p, x.v); }
inline Floats load_half(const uint16_t *p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)))};
}
inline void store_half(uint16_t *p, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

inline Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats sub(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats mul(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats divide(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats absolute(Floats a) { return {_mm512_abs_ps(a.v)}; }
inline Floats round_even(Floats a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Floats scale_by_power(Floats x, Floats n) { return {_mm512_scalef_ps(x.v, n.v)}; }
inline float reduce_add(Floats x) { return _mm512_reduce_add_ps(x.v); }
inline float reduce_max(Floats x) { return _mm512_reduce_max_ps(x.v); }

inline void transpose(Floats *rows) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
        a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
    for (int i = 0; i < 16; i += 4) {  // b[i + c]: column c of each 128-bit part, rows i .. i + 3
        const __m512d low = _mm512_castps_pd(a[i]), low2 = _mm512_castps_pd(a[i + 2]);
        const __m512d high = _mm512_castps_pd(a[i + 1]), high2 = _mm512_castps_pd(a[i + 3]);
        b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2));
        b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2));
        b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2));
        b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2));
    }
    for (int c = 0; c < 4; ++c) {  // parts 0, 2 and 1, 3 of rows 0 .. 7 and 8 .. 15
        const __m512 even_low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88);
        const __m512 odd_low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xDD);
        const __m512 even_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
        const __m512 odd_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xDD);
        rows[c].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        rows[4 + c].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        rows[8 + c].v = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
        rows[12 + c].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
    }
}

#define EDGE_REDUCE_EACH
// Element b of the result combines all lanes of rows[b]: half as many shuffles as a transposition.
template <class Combine>
inline Floats reduce_each(Floats *rows, const Combine &combine) {
    const auto pair = [&](__m512 a, __m512 b) { return combine(Floats{a}, Floats{b}).v; };
    __m512 quads[4];  // [part of 128 bits][row]
    for (int i = 0; i < 4; ++i) {
        __m512d halves[2];
        for (int j = 0; j < 2; ++j) {
            const __m512 a = rows[4 * i + 2 * j].v, b = rows[4 * i + 2 * j + 1].v;
            halves[j] = _mm512_castps_pd(pair(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        }
        quads[i] = pair(_mm512_castpd_ps(_mm512_unpacklo_pd(halves[0], halves[1])),
                        _mm512_castpd_ps(_mm512_unpackhi_pd(halves[0], halves[1])));
    }
    const auto parts = [&](__m512 a, __m512 b) {
        return pair(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
    };
    return {parts(parts(quads[0], quads[1]), parts(quads[2], quads[3]))};
}

inline void store_int8(int8_t *p, Floats x) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x.v)));
}
inline void store_int16(int16_t *p, Floats a, Floats b) {
    const __m512i mixed = _mm512_packs_epi32(_mm512_cvtps_epi32(a.v), _mm512_cvtps_epi32(b.v));
    _mm512_storeu_si512(p, _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), mixed));
}
inline void sums_of_four(const Floats *x, float *sums) {
    const __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(x[0].v, x[1].v), _mm512_unpackhi_ps(x[0].v, x[1].v));
    const __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(x[2].v, x[3].v), _mm512_unpackhi_ps(x[2].v, x[3].v));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xEE));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1)));
}
inline Floats select_below(int64_t first, int64_t limit, Floats a, Floats b) {
    const int64_t lanes = limit - first;
    const __mmask16 mask = lanes <= 0 ? 0 : lanes >= 16 ? 0xFFFF : __mmask16((1u << lanes) - 1);
    return {_mm512_mask_blend_ps(mask, b.v, a.v)};
}

inline Ints set_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints shift_right(Ints x, int bits) { return {_mm512_srai_epi32(x.v, unsigned(bits))}; }
inline Floats to_float(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline Floats scaled(Ints sum, Floats scale, Floats offset) {
    return {_mm512_fmadd_ps(_mm512_castsi512_ps(sum.v), scale.v, offset.v)};
}

__attribute__((always_inline)) inline void prefetch(const uint8_t *p) {
    _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T0);
}
__attribute__((always_inline)) inline void prefetch_far(const uint8_t *p) {
    _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T1);
}
inline void store_bytes(uint8_t *p, Bytes x) { _mm512_storeu_si512(p, x.v); }
inline Bytes load_bytes(const uint8_t *p) {
    Bytes x{_mm512_loadu_si512(p)};
    asm("" : "+v"(x.v));  // or GCC reads once per use, and every other group straddles cache lines
    return x;
}
template <int bits>
inline Bytes fields(Bytes x, int field) {
    return {
        _mm512_and_si512(_mm512_srli_epi16(x.v, unsigned(field * bits)), _mm512_set1_epi8((1 << bits) - 1))};
}
template <>
inline Bytes fields<8>(Bytes x, int) {
    return x;
}
template <int bits>
inline Bytes field_in_place(Bytes x, int field) {
    return {_mm512_and_si512(x.v, _mm512_set1_epi8(char(((1 << bits) - 1) << (field * bits))))};
}
inline Bytes look_up(const int8_t *table, Bytes indices) {
    const __m128i one = _mm_loadu_si128(reinterpret_cast<const __m128i *>(table));
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(one), indices.v)};
}
inline Floats column(Bytes x, int byte) {
    return {_mm512_cvtepi32_ps(
        _mm512_and_si512(_mm512_srli_epi32(x.v, unsigned(8 * byte)), _mm512_set1_epi32(255)))};
}
inline Word load_word(const int8_t *a) {
    int32_t word;
    memcpy(&word, a, 4);
    return {_mm512_set1_epi32(word)};
}
inline Ints dot_small(Ints acc, Bytes w, Word a) { return {_mm512_dpbusd_epi32(acc.v, w.v, a.v)}; }
inline Ints dot_biased(Ints acc, Bytes w, Word a) { return dot_small(acc, w, a); }
inline Bytes load_pairs(const int16_t *p) { return {_mm512_loadu_si512(p)}; }
template <int bits>
inline Floats signed_field(Bytes x, int field) {
    const unsigned above = unsigned(32 - bits - bits * field);
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(x.v, above), 32 - bits))};
}
using PairSums = Ints;
inline Ints whole(PairSums sums) { return sums; }
inline PairSums no_pairs() { return set_int(0); }
inline PairSums dot_pairs(PairSums acc, Bytes w, Word a) {
    // Of the intrinsic GCC makes two register moves more.
    asm("vpdpwssd %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(a.v));
    return acc;
}
// Four codes of a lane are widened to two pairs, which stand in two lanes until the end.
struct Fours {
    __m512i low, high;
};
using FourSums = Fours;
struct FourWord {
    __m512i v;
};
inline Fours load_fours(const int8_t *p) {
    const __m256i *halves = reinterpret_cast<const __m256i *>(p);
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(halves)),
            _mm512_cvtepi8_epi16(_mm256_loadu_si256(halves + 1))};
}
inline FourWord load_four_word(const int16_t *a) {
    int64_t word;
    memcpy(&word, a, 8);
    return {_mm512_set1_epi64(word)};
}
inline FourSums no_fours() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
inline FourSums dot_fours(FourSums acc, Fours w, FourWord a) {
    asm("vpdpwssd %2, %1, %0" : "+v"(acc.low) : "v"(w.low), "v"(a.v));
    asm("vpdpwssd %2, %1, %0" : "+v"(acc.high) : "v"(w.high), "v"(a.v));
    return acc;
}
inline Ints whole(FourSums sums) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return {_mm512_add_epi32(_mm512_permutex2var_epi32(sums.low, even, sums.high),
                             _mm512_permutex2var_epi32(sums.low, odd, sums.high))};
}
using Aliased __attribute__((may_alias)) = int32_t;
inline Ints dot_small(Ints acc, Bytes w, const int8_t *a) {
    // Of the intrinsic GCC makes a broadcast and two register moves more.
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc.v) : "v"(w.v), "m"(*reinterpret_cast<const Aliased *>(a)));
    return acc;
}
inline Ints dot_biased(Ints acc, Bytes w, const int8_t *a) { return dot_small(acc, w, a); }
