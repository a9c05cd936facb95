// Sixteen lanes in two AVX2 registers; EDGE_AVX_VNNI chooses the dot-product instructions.

constexpr int half_sums = 8;
constexpr int most_sums = 4;
constexpr int peak_chains = 6;
constexpr int max_tokens = 4, streamed_tokens = 1;
constexpr int block_tokens = 4, block_tiles = 1;
constexpr int score_rows = 4, score_vectors = 1, value_rows = 4, value_vectors = 1;
constexpr int pair_rows = 4, pair_vectors = 1, four_rows = 2;
#if defined(EDGE_AVX_VNNI)
constexpr int biased_offset = 0, direct_tokens = 4;
constexpr bool fields_in_place = true;
#else
// Products of two full bytes would overflow the 16-bit sums of maddubs; signed ones just fit.
constexpr int biased_offset = 128, direct_tokens = 8;
constexpr bool fields_in_place = false;
#endif
// An integer below 2^22 added to these bits is the float 1.5 x 2^23 + that integer: no conversion is needed.
constexpr int32_t sum_bias = 0x4B400000;
constexpr float biased_zero = 12582912.0f;

struct Floats {
    __m256 lo, hi;
};
struct Ints {
    __m256i lo, hi;
};
struct Bytes {
    __m256i lo, hi;
};
struct Word {
    __m256i v;
};

inline Floats set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats zero() { return set(0.0f); }
inline Floats load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float *p, Floats x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
inline Floats load_half(const uint16_t *p) {
    const __m128i *halves = reinterpret_cast<const __m128i *>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
inline void store_half(uint16_t *p, Floats x) {
    __m128i *halves = reinterpret_cast<__m128i *>(p);
    _mm_storeu_si128(halves, _mm256_cvtps_ph(x.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(x.hi, _MM_FROUND_TO_NEAREST_INT));
}

inline Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Floats sub(Floats a, Floats b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Floats divide(Floats a, Floats b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Floats absolute(Floats a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline Floats round_even(Floats a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
inline __m256 power_of_two(__m256 n) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Floats scale_by_power(Floats x, Floats n) { return mul(x, {power_of_two(n.lo), power_of_two(n.hi)}); }
inline float reduce_add(Floats x) {
    const __m256 eight = _mm256_add_ps(x.lo, x.hi);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float reduce_max(Floats x) {
    const __m256 eight = _mm256_max_ps(x.lo, x.hi);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
inline void transpose_eight(__m256 *rows) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xEE);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xEE);
    }
    for (int c = 0; c < 4; ++c) {
        rows[c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
        rows[4 + c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
    }
}
inline void transpose(Floats *rows) {
    __m256 quarters[2][2][8];  // [upper rows][upper columns]
    for (int i = 0; i < 16; ++i) {
        quarters[i / 8][0][i % 8] = rows[i].lo;
        quarters[i / 8][1][i % 8] = rows[i].hi;
    }
    for (int i = 0; i < 4; ++i) transpose_eight(quarters[i / 2][i % 2]);
    for (int i = 0; i < 16; ++i) rows[i] = {quarters[0][i / 8][i % 8], quarters[1][i / 8][i % 8]};
}

inline void store_int8(int8_t *p, Floats x) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}
inline void store_int16(int16_t *p, Floats a, Floats b) {
    const Floats both[] = {a, b};
    for (const Floats &x : both) {
        const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm256_permute4x64_epi64(words, 0xD8));
        p += 16;
    }
}
inline void sums_of_four(const Floats *x, float *sums) {
    __m256 eight[4];
    for (int i = 0; i < 4; ++i) eight[i] = _mm256_add_ps(x[i].lo, x[i].hi);
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(eight[0], eight[1]), _mm256_hadd_ps(eight[2], eight[3]));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
inline Floats select_below(int64_t first, int64_t limit, Floats a, Floats b) {
    const int64_t lanes = limit - first;
    const __m256i count = _mm256_set1_epi32(lanes <= 0 ? 0 : lanes >= 16 ? 16 : int(lanes));
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i low = _mm256_cmpgt_epi32(count, index);
    const __m256i high = _mm256_cmpgt_epi32(count, _mm256_add_epi32(index, _mm256_set1_epi32(8)));
    return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(low)),
            _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(high))};
}

inline Ints set_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline Ints shift_right(Ints x, int bits) {
    return {_mm256_srai_epi32(x.lo, bits), _mm256_srai_epi32(x.hi, bits)};
}
inline Floats scaled(Ints sum, Floats scale, Floats offset) {
    return fma({_mm256_castsi256_ps(sum.lo), _mm256_castsi256_ps(sum.hi)}, scale, offset);
}
inline Floats to_float(Ints x) { return {_mm256_cvtepi32_ps(x.lo), _mm256_cvtepi32_ps(x.hi)}; }

__attribute__((always_inline)) inline void prefetch(const uint8_t *p) {
    _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T0);
}
__attribute__((always_inline)) inline void prefetch_far(const uint8_t *p) {
    _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T1);
}
inline Bytes load_bytes(const uint8_t *p) {
    const __m256i *halves = reinterpret_cast<const __m256i *>(p);
    return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
inline void store_bytes(uint8_t *p, Bytes x) {
    __m256i *halves = reinterpret_cast<__m256i *>(p);
    _mm256_storeu_si256(halves, x.lo);
    _mm256_storeu_si256(halves + 1, x.hi);
}
template <int bits>
inline Bytes fields(Bytes x, int field) {
    const __m256i mask = _mm256_set1_epi8((1 << bits) - 1);
    return {_mm256_and_si256(_mm256_srli_epi16(x.lo, field * bits), mask),
            _mm256_and_si256(_mm256_srli_epi16(x.hi, field * bits), mask)};
}
template <>
inline Bytes fields<8>(Bytes x, int) {
    return x;
}
template <int bits>
inline Bytes field_in_place(Bytes x, int field) {
    const __m256i mask = _mm256_set1_epi8(char(((1 << bits) - 1) << (field * bits)));
    return {_mm256_and_si256(x.lo, mask), _mm256_and_si256(x.hi, mask)};
}
inline Bytes look_up(const int8_t *table, Bytes indices) {
    const __m128i one = _mm_loadu_si128(reinterpret_cast<const __m128i *>(table));
    const __m256i both = _mm256_broadcastsi128_si256(one);
    return {_mm256_shuffle_epi8(both, indices.lo), _mm256_shuffle_epi8(both, indices.hi)};
}
inline Floats column(Bytes x, int byte) {
    const __m256i mask = _mm256_set1_epi32(255);
    return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.lo, 8 * byte), mask)),
            _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.hi, 8 * byte), mask))};
}
inline Bytes load_pairs(const int16_t *p) { return load_bytes(reinterpret_cast<const uint8_t *>(p)); }
template <int bits>
inline Floats signed_field(Bytes x, int field) {
    const int above = 32 - bits - bits * field;
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(x.lo, above), 32 - bits)),
            _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(x.hi, above), 32 - bits))};
}
inline Word load_word(const int8_t *a) {
    int32_t word;
    memcpy(&word, a, 4);
    return {_mm256_set1_epi32(word)};
}
#if defined(EDGE_AVX_VNNI)
inline __m256i dot_words(__m256i acc, __m256i w, __m256i a) { return _mm256_dpwssd_avx_epi32(acc, w, a); }
#else
inline __m256i dot_words(__m256i acc, __m256i w, __m256i a) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(w, a));
}
#endif
using PairSums = Ints;
inline Ints whole(PairSums sums) { return sums; }
inline PairSums no_pairs() { return set_int(0); }
inline PairSums dot_pairs(PairSums acc, Bytes w, Word a) {
    return {dot_words(acc.lo, w.lo, a.v), dot_words(acc.hi, w.hi, a.v)};
}
// Four codes of a lane are widened to two pairs, which stand in two lanes until the end.
struct Fours {
    __m256i v[4];
};
using FourSums = Fours;
struct FourWord {
    __m256i v;
};
inline Fours load_fours(const int8_t *p) {
    const __m128i *quarters = reinterpret_cast<const __m128i *>(p);
    Fours r;
    for (int i = 0; i < 4; ++i) r.v[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(quarters + i));
    return r;
}
inline FourWord load_four_word(const int16_t *a) {
    int64_t word;
    memcpy(&word, a, 8);
    return {_mm256_set1_epi64x(word)};
}
inline FourSums no_fours() {
    const __m256i none = _mm256_setzero_si256();
    return {{none, none, none, none}};
}
inline FourSums dot_fours(FourSums acc, Fours w, FourWord a) {
    for (int i = 0; i < 4; ++i) acc.v[i] = dot_words(acc.v[i], w.v[i], a.v);
    return acc;
}
inline Ints whole(FourSums sums) {
    return {_mm256_permute4x64_epi64(_mm256_hadd_epi32(sums.v[0], sums.v[1]), 0xD8),
            _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums.v[2], sums.v[3]), 0xD8)};
}
#if defined(EDGE_AVX_VNNI)
inline Ints dot_small(Ints acc, Bytes w, Word a) {
    return {_mm256_dpbusd_avx_epi32(acc.lo, w.lo, a.v), _mm256_dpbusd_avx_epi32(acc.hi, w.hi, a.v)};
}
inline Ints dot_biased(Ints acc, Bytes w, Word a) { return dot_small(acc, w, a); }
#else
inline __m256i dot8(__m256i acc, __m256i unsigned_bytes, __m256i signed_bytes) {
    const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Ints dot_small(Ints acc, Bytes w, Word a) {
    return {dot8(acc.lo, w.lo, a.v), dot8(acc.hi, w.hi, a.v)};
}
// Sums of pairs of products in 16 bits, see dots.h.
#define EDGE_SHORT_SUMS
struct Shorts {
    __m256i lo, hi;
};
inline Shorts no_shorts() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
// In this order: the compiler would add products to each other first, and run out of registers.
inline __m256i add_in_turn(__m256i sums, __m256i products) {
    sums = _mm256_add_epi16(sums, products);
    asm("" : "+x"(sums));
    return sums;
}
inline Shorts dot_small(Shorts acc, Bytes w, Word a) {
    return {add_in_turn(acc.lo, _mm256_maddubs_epi16(w.lo, a.v)),
            add_in_turn(acc.hi, _mm256_maddubs_epi16(w.hi, a.v))};
}
inline Shorts dot_small(Shorts acc, Bytes w, const int8_t *a) { return dot_small(acc, w, load_word(a)); }
inline Ints add(Ints acc, Shorts sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(sums.lo, ones)),
            _mm256_add_epi32(acc.hi, _mm256_madd_epi16(sums.hi, ones))};
}
inline Ints dot_biased(Ints acc, Bytes w, Word a) {
    const __m256i bias = _mm256_set1_epi8(-128);
    const __m256i lo = _mm256_xor_si256(w.lo, bias), hi = _mm256_xor_si256(w.hi, bias);
    return {dot8(acc.lo, _mm256_abs_epi8(lo), _mm256_sign_epi8(a.v, lo)),
            dot8(acc.hi, _mm256_abs_epi8(hi), _mm256_sign_epi8(a.v, hi))};
}
#endif
inline Ints dot_small(Ints acc, Bytes w, const int8_t *a) { return dot_small(acc, w, load_word(a)); }
inline Ints dot_biased(Ints acc, Bytes w, const int8_t *a) { return dot_biased(acc, w, load_word(a)); }
