// Sixteen lanes in four NEON registers; EDGE_NEON_DOTPROD chooses the dot-product instructions of ARMv8.2.

constexpr int half_sums = 16;
constexpr int most_sums = 2;
constexpr int peak_chains = 6;
constexpr int max_tokens = 4, streamed_tokens = 1, direct_tokens = 4;
constexpr int block_tokens = 4, block_tiles = 1;
constexpr int score_rows = 4, score_vectors = 1, value_rows = 4, value_vectors = 1;
constexpr int pair_rows = 2, pair_vectors = 1, four_rows = 2;
constexpr int biased_offset = 128;  // the dot products are signed x signed
constexpr int32_t sum_bias = 0;
constexpr float biased_zero = 0.0f;
constexpr bool fields_in_place = false;  // the upper field would be negative

struct Floats {
    float32x4_t v[4];
};
struct Ints {
    int32x4_t v[4];
};
struct Bytes {
    uint8x16_t v[4];
};
struct Word {
    int8x16_t v;
};

#define EDGE_QUARTERS for (int i = 0; i < 4; ++i)

inline Floats set(float x) {
    const float32x4_t q = vdupq_n_f32(x);
    return {{q, q, q, q}};
}
inline Floats zero() { return set(0.0f); }
inline Floats load(const float *p) {
    return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
inline void store(float *p, Floats x) { EDGE_QUARTERS vst1q_f32(p + 4 * i, x.v[i]); }
inline Floats load_half(const uint16_t *p) {
    Floats r;
    EDGE_QUARTERS r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    return r;
}
inline void store_half(uint16_t *p, Floats x) {
    EDGE_QUARTERS vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}

inline Floats add(Floats a, Floats b) {
    EDGE_QUARTERS a.v[i] = vaddq_f32(a.v[i], b.v[i]);
    return a;
}
inline Floats sub(Floats a, Floats b) {
    EDGE_QUARTERS a.v[i] = vsubq_f32(a.v[i], b.v[i]);
    return a;
}
inline Floats mul(Floats a, Floats b) {
    EDGE_QUARTERS a.v[i] = vmulq_f32(a.v[i], b.v[i]);
    return a;
}
inline Floats divide(Floats a, Floats b) {
    EDGE_QUARTERS a.v[i] = vdivq_f32(a.v[i], b.v[i]);
    return a;
}
inline Floats fma(Floats a, Floats b, Floats c) {
    EDGE_QUARTERS c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
    return c;
}
inline Floats max(Floats a, Floats b) {
    EDGE_QUARTERS a.v[i] = vmaxq_f32(a.v[i], b.v[i]);
    return a;
}
inline Floats min(Floats a, Floats b) {
    EDGE_QUARTERS a.v[i] = vminq_f32(a.v[i], b.v[i]);
    return a;
}
inline Floats absolute(Floats a) {
    EDGE_QUARTERS a.v[i] = vabsq_f32(a.v[i]);
    return a;
}
inline Floats round_even(Floats a) {
    EDGE_QUARTERS a.v[i] = vrndnq_f32(a.v[i]);
    return a;
}
inline Floats scale_by_power(Floats x, Floats n) {
    EDGE_QUARTERS {
        const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n.v[i]), vdupq_n_s32(127));
        x.v[i] = vmulq_f32(x.v[i], vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
    }
    return x;
}
inline float reduce_add(Floats x) {
    return vaddvq_f32(vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3])));
}
inline float reduce_max(Floats x) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[2]), vmaxq_f32(x.v[1], x.v[3])));
}
inline void transpose_four(float32x4_t *a, float32x4_t *b, float32x4_t *c, float32x4_t *d) {
    const float32x4x2_t ab = vtrnq_f32(*a, *b), cd = vtrnq_f32(*c, *d);
    *a = vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0]));
    *b = vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1]));
    *c = vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0]));
    *d = vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1]));
}
inline void transpose(Floats *rows) {
    for (int r = 0; r < 4; ++r) {
        for (int c = 0; c < 4; ++c) {
            transpose_four(&rows[4 * r].v[c], &rows[4 * r + 1].v[c], &rows[4 * r + 2].v[c],
                           &rows[4 * r + 3].v[c]);
        }
    }
    for (int r = 0; r < 4; ++r) {
        for (int c = 0; c < r; ++c) {
            for (int i = 0; i < 4; ++i) {
                const float32x4_t x = rows[4 * r + i].v[c];
                rows[4 * r + i].v[c] = rows[4 * c + i].v[r];
                rows[4 * c + i].v[r] = x;
            }
        }
    }
}

inline void store_int8(int8_t *p, Floats x) {
    int16x8_t words[2];
    for (int i = 0; i < 2; ++i) {
        words[i] =
            vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x.v[2 * i])), vqmovn_s32(vcvtnq_s32_f32(x.v[2 * i + 1])));
    }
    vst1q_s8(p, vcombine_s8(vqmovn_s16(words[0]), vqmovn_s16(words[1])));
}
inline void store_int16(int16_t *p, Floats a, Floats b) {
    EDGE_QUARTERS {
        vst1_s16(p + 4 * i, vqmovn_s32(vcvtnq_s32_f32(a.v[i])));
        vst1_s16(p + 16 + 4 * i, vqmovn_s32(vcvtnq_s32_f32(b.v[i])));
    }
}
inline void sums_of_four(const Floats *x, float *sums) {
    float32x4_t four[4];
    EDGE_QUARTERS four[i] = vaddq_f32(vaddq_f32(x[i].v[0], x[i].v[2]), vaddq_f32(x[i].v[1], x[i].v[3]));
    vst1q_f32(sums, vpaddq_f32(vpaddq_f32(four[0], four[1]), vpaddq_f32(four[2], four[3])));
}
inline Floats select_below(int64_t first, int64_t limit, Floats a, Floats b) {
    const int64_t lanes = limit - first;
    const int32_t count = lanes <= 0 ? 0 : lanes >= 16 ? 16 : int32_t(lanes);
    const int32_t start[4] = {0, 1, 2, 3};
    const int32x4_t index = vld1q_s32(start);
    EDGE_QUARTERS {
        const uint32x4_t below = vcltq_s32(vaddq_s32(index, vdupq_n_s32(4 * i)), vdupq_n_s32(count));
        a.v[i] = vbslq_f32(below, a.v[i], b.v[i]);
    }
    return a;
}

inline Ints set_int(int32_t x) {
    const int32x4_t q = vdupq_n_s32(x);
    return {{q, q, q, q}};
}
inline Ints add(Ints a, Ints b) {
    EDGE_QUARTERS a.v[i] = vaddq_s32(a.v[i], b.v[i]);
    return a;
}
inline Floats to_float(Ints x) {
    Floats r;
    EDGE_QUARTERS r.v[i] = vcvtq_f32_s32(x.v[i]);
    return r;
}

inline Ints shift_right(Ints x, int bits) {
    EDGE_QUARTERS x.v[i] = vshlq_s32(x.v[i], vdupq_n_s32(-bits));
    return x;
}
inline Floats scaled(Ints sum, Floats scale, Floats) { return mul(to_float(sum), scale); }

__attribute__((always_inline)) inline void prefetch(const uint8_t *p) { __builtin_prefetch(p); }
__attribute__((always_inline)) inline void prefetch_far(const uint8_t *p) { __builtin_prefetch(p, 0, 2); }
inline void store_bytes(uint8_t *p, Bytes x) { EDGE_QUARTERS vst1q_u8(p + 16 * i, x.v[i]); }
inline Bytes load_bytes(const uint8_t *p) {
    return {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
}
template <int bits>
inline Bytes fields(Bytes x, int field) {
    const int8x16_t shift = vdupq_n_s8(int8_t(-field * bits));
    const uint8x16_t mask = vdupq_n_u8((1 << bits) - 1);
    EDGE_QUARTERS x.v[i] = vandq_u8(vshlq_u8(x.v[i], shift), mask);
    return x;
}
template <>
inline Bytes fields<8>(Bytes x, int) {
    return x;
}
template <int bits>
inline Bytes field_in_place(Bytes x, int field) {
    EDGE_QUARTERS x.v[i] = vandq_u8(x.v[i], vdupq_n_u8(((1 << bits) - 1) << (field * bits)));
    return x;
}
inline Bytes look_up(const int8_t *table, Bytes indices) {
    const uint8x16_t bytes = vreinterpretq_u8_s8(vld1q_s8(table));
    EDGE_QUARTERS indices.v[i] = vqtbl1q_u8(bytes, indices.v[i]);
    return indices;
}
inline Floats column(Bytes x, int byte) {
    const int32x4_t shift = vdupq_n_s32(-8 * byte);
    const uint32x4_t mask = vdupq_n_u32(255);
    Floats r;
    EDGE_QUARTERS r.v[i] = vcvtq_f32_u32(vandq_u32(vshlq_u32(vreinterpretq_u32_u8(x.v[i]), shift), mask));
    return r;
}
inline Bytes load_pairs(const int16_t *p) { return load_bytes(reinterpret_cast<const uint8_t *>(p)); }
template <int bits>
inline Floats signed_field(Bytes x, int field) {
    const int32x4_t up = vdupq_n_s32(32 - bits - bits * field);
    Floats r;
    EDGE_QUARTERS {
        r.v[i] = vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(vreinterpretq_s32_u8(x.v[i]), up), 32 - bits));
    }
    return r;
}
inline int32x4_t dot4(int32x4_t acc, int8x16_t w, int8x16_t a) {
#if defined(EDGE_NEON_DOTPROD)
    return vdotq_s32(acc, w, a);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a));
    const int16x8_t high = vmull_high_s8(w, a);
    return vpadalq_s16(acc, vpaddq_s16(low, high));
#endif
}
inline Word load_word(const int8_t *a) {
    int32_t word;
    memcpy(&word, a, 4);
    return {vreinterpretq_s8_s32(vdupq_n_s32(word))};
}
// A sum of its own for each number of a pair: the two are added at the end only.
struct PairSums {
    int32x4_t low[4], high[4];
};
inline PairSums no_pairs() {
    PairSums sums;
    EDGE_QUARTERS sums.low[i] = sums.high[i] = vdupq_n_s32(0);
    return sums;
}
inline Ints whole(PairSums sums) {
    Ints r;
    EDGE_QUARTERS r.v[i] = vpaddq_s32(sums.low[i], sums.high[i]);
    return r;
}
inline PairSums dot_pairs(PairSums acc, Bytes w, Word a) {
    const int16x8_t pair = vreinterpretq_s16_s8(a.v);
    EDGE_QUARTERS {
        const int16x8_t pairs = vreinterpretq_s16_u8(w.v[i]);
        acc.low[i] = vmlal_s16(acc.low[i], vget_low_s16(pairs), vget_low_s16(pair));
        acc.high[i] = vmlal_high_s16(acc.high[i], pairs, pair);
    }
    return acc;
}
// What multiplies four codes of a lane is split into two digits of 8 bits, for dot products of bytes. The upper sums
// may wrap; the whole ones do not.
using Fours = Bytes;
struct FourSums {
    int32x4_t high[4], low[4];
};
struct FourWord {
    int8x16_t high, low;
};
inline Fours load_fours(const int8_t *p) { return load_bytes(reinterpret_cast<const uint8_t *>(p)); }
inline FourWord load_four_word(const int16_t *a) {
    const int16x8_t twice = vcombine_s16(vld1_s16(a), vld1_s16(a));
    const int8x8_t high = vrshrn_n_s16(twice, 8), low = vmovn_s16(twice);  // 256 high + low, both signed
    return {vcombine_s8(high, high), vcombine_s8(low, low)};
}
inline FourSums no_fours() {
    FourSums sums;
    EDGE_QUARTERS sums.high[i] = sums.low[i] = vdupq_n_s32(0);
    return sums;
}
inline FourSums dot_fours(FourSums acc, Fours w, FourWord a) {
    EDGE_QUARTERS {
        const int8x16_t codes = vreinterpretq_s8_u8(w.v[i]);
        acc.high[i] = dot4(acc.high[i], codes, a.high);
        acc.low[i] = dot4(acc.low[i], codes, a.low);
    }
    return acc;
}
inline Ints whole(FourSums sums) {
    Ints r;
    EDGE_QUARTERS r.v[i] = vaddq_s32(vshlq_n_s32(sums.high[i], 8), sums.low[i]);
    return r;
}
inline Ints dot_small(Ints acc, Bytes w, Word a) {
    EDGE_QUARTERS acc.v[i] = dot4(acc.v[i], vreinterpretq_s8_u8(w.v[i]), a.v);
    return acc;
}
inline Ints dot_biased(Ints acc, Bytes w, Word a) {
    const uint8x16_t bias = vdupq_n_u8(128);
    EDGE_QUARTERS acc.v[i] = dot4(acc.v[i], vreinterpretq_s8_u8(veorq_u8(w.v[i], bias)), a.v);
    return acc;
}
inline Ints dot_small(Ints acc, Bytes w, const int8_t *a) { return dot_small(acc, w, load_word(a)); }
inline Ints dot_biased(Ints acc, Bytes w, const int8_t *a) { return dot_biased(acc, w, load_word(a)); }
#undef EDGE_QUARTERS
