// Sixteen lanes in plain C: every CPU, and the yardstick for the other tiers.

constexpr int half_sums = 16;
constexpr int most_sums = 4;
constexpr int peak_chains = 4;
constexpr int max_tokens = 4, streamed_tokens = 1, direct_tokens = 4;
constexpr int block_tokens = 4, block_tiles = 1;
constexpr int score_rows = 4, score_vectors = 1, value_rows = 4, value_vectors = 1;
constexpr int pair_rows = 2, pair_vectors = 1, four_rows = 2;
constexpr int biased_offset = 0;
constexpr int32_t sum_bias = 0;
constexpr float biased_zero = 0.0f;
constexpr bool fields_in_place = false;

struct Floats {
    float v[16];
};
struct Ints {
    int32_t v[16];
};
struct Bytes {
    uint8_t v[64];
};
struct Word {
    int8_t v[4];
};

#define EDGE_LANES for (int i = 0; i < 16; ++i)

inline Floats set(float x) {
    Floats r;
    EDGE_LANES r.v[i] = x;
    return r;
}
inline Floats zero() { return set(0.0f); }
inline Floats load(const float *p) {
    Floats r;
    memcpy(r.v, p, sizeof r.v);
    return r;
}
inline void store(float *p, Floats x) { memcpy(p, x.v, sizeof x.v); }

inline float half_to_float(uint16_t half) {
    const uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
    const float magnitude = float(mantissa) * 5.9604644775390625e-08f;  // zero and subnormals
    uint32_t bits;
    memcpy(&bits, &magnitude, 4);
    if (exponent != 0) bits = (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13;
    bits |= uint32_t(half & 0x8000) << 16;
    float value = 0.0f;
    memcpy(&value, &bits, 4);
    return value;
}
inline uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return sign | 0x7E00;
    if (bits >= 0x477FF000) return sign | 0x7C00;  // rounds to infinity from 65520 on
    if (bits < 0x38800000) {                       // subnormal: let the FPU round at the right place
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, 4);
        return sign | uint16_t(bits - 0x3F000000);
    }
    return sign | uint16_t((bits - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13);
}
inline Floats load_half(const uint16_t *p) {
    Floats r;
    EDGE_LANES r.v[i] = half_to_float(p[i]);
    return r;
}
inline void store_half(uint16_t *p, Floats x) { EDGE_LANES p[i] = float_to_half(x.v[i]); }

inline Floats add(Floats a, Floats b) {
    EDGE_LANES a.v[i] += b.v[i];
    return a;
}
inline Floats sub(Floats a, Floats b) {
    EDGE_LANES a.v[i] -= b.v[i];
    return a;
}
inline Floats mul(Floats a, Floats b) {
    EDGE_LANES a.v[i] *= b.v[i];
    return a;
}
inline Floats fma(Floats a, Floats b, Floats c) {
    EDGE_LANES c.v[i] = a.v[i] * b.v[i] + c.v[i];
    return c;
}
inline Floats max(Floats a, Floats b) {
    EDGE_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
inline Floats min(Floats a, Floats b) {
    EDGE_LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
inline Floats absolute(Floats a) {
    EDGE_LANES a.v[i] = fabsf(a.v[i]);
    return a;
}
inline Floats divide(Floats a, Floats b) {
    EDGE_LANES a.v[i] /= b.v[i];
    return a;
}
inline float round_even(float x) {
    // A float of 2^23 or more has no bits for a fraction.
    const float no_fraction = x < 0.0f ? -8388608.0f : 8388608.0f;
    return fabsf(x) < 8388608.0f ? (x + no_fraction) - no_fraction : x;
}
inline Floats round_even(Floats a) {
    EDGE_LANES a.v[i] = round_even(a.v[i]);
    return a;
}
inline Floats scale_by_power(Floats x, Floats n) {
    EDGE_LANES {
        // NaN: x is as well then. What is out of range comes from rows of a damaged cache: infinity.
        const float most = n.v[i] < 128.0f ? n.v[i] : 128.0f;
        const float whole = n.v[i] != n.v[i] ? 0.0f : most > -127.0f ? most : -127.0f;
        const int32_t exponent = int32_t(whole);
        const uint32_t bits = uint32_t(exponent + 127) << 23;
        float power;
        memcpy(&power, &bits, 4);
        x.v[i] *= power;
    }
    return x;
}
inline float reduce_add(Floats x) {
    for (int step = 8; step; step /= 2) {
        for (int i = 0; i < step; ++i) x.v[i] += x.v[i + step];
    }
    return x.v[0];
}
inline float reduce_max(Floats x) {
    float r = x.v[0];
    EDGE_LANES r = x.v[i] > r ? x.v[i] : r;
    return r;
}
inline void transpose(Floats *rows) {
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < i; ++j) {
            const float x = rows[i].v[j];
            rows[i].v[j] = rows[j].v[i];
            rows[j].v[i] = x;
        }
    }
}

inline void store_int8(int8_t *p, Floats x) {
    EDGE_LANES p[i] = x.v[i] == x.v[i] ? int8_t(round_even(x.v[i])) : 0;
}
// Saturated, as elsewhere: what a damaged file holds may be anything.
inline int16_t to_int16(float x) {
    return x != x ? 0 : x >= 32767.0f ? 32767 : x <= -32768.0f ? -32768 : int16_t(round_even(x));
}
inline void store_int16(int16_t *p, Floats a, Floats b) {
    EDGE_LANES {
        p[i] = to_int16(a.v[i]);
        p[16 + i] = to_int16(b.v[i]);
    }
}
inline void sums_of_four(const Floats *x, float *sums) {
    for (int i = 0; i < 4; ++i) sums[i] = reduce_add(x[i]);
}
inline Floats select_below(int64_t first, int64_t limit, Floats a, Floats b) {
    EDGE_LANES a.v[i] = first + i < limit ? a.v[i] : b.v[i];
    return a;
}

inline Ints set_int(int32_t x) {
    Ints r;
    EDGE_LANES r.v[i] = x;
    return r;
}
inline Ints add(Ints a, Ints b) {
    EDGE_LANES a.v[i] += b.v[i];
    return a;
}
inline Floats to_float(Ints x) {
    Floats r;
    EDGE_LANES r.v[i] = float(x.v[i]);
    return r;
}

inline Ints shift_right(Ints x, int bits) {
    EDGE_LANES x.v[i] >>= bits;
    return x;
}
inline Floats scaled(Ints sum, Floats scale, Floats) { return mul(to_float(sum), scale); }

inline void prefetch(const uint8_t *) {}
inline void prefetch_far(const uint8_t *) {}
inline void store_bytes(uint8_t *p, Bytes x) { memcpy(p, x.v, 64); }
inline Bytes load_bytes(const uint8_t *p) {
    Bytes r;
    memcpy(r.v, p, 64);
    return r;
}
template <int bits>
inline Bytes fields(Bytes x, int field) {
    for (int i = 0; i < 64; ++i) x.v[i] = x.v[i] >> (field * bits) & ((1 << bits) - 1);
    return x;
}
template <int bits>
inline Bytes field_in_place(Bytes x, int field) {
    for (int i = 0; i < 64; ++i) x.v[i] &= ((1 << bits) - 1) << (field * bits);
    return x;
}
inline Bytes look_up(const int8_t *table, Bytes indices) {
    for (uint8_t &byte : indices.v) byte = uint8_t(table[byte]);
    return indices;
}
inline Floats column(Bytes x, int byte) {
    Floats r;
    EDGE_LANES r.v[i] = float(x.v[4 * i + byte]);
    return r;
}
inline Bytes load_pairs(const int16_t *p) { return load_bytes(reinterpret_cast<const uint8_t *>(p)); }
inline int16_t half_of(const uint8_t *pair, int half) {
    int16_t value;
    memcpy(&value, pair + 2 * half, 2);
    return value;
}
template <int bits>
inline Floats signed_field(Bytes x, int field) {
    Floats r;
    EDGE_LANES {
        uint32_t lane;
        memcpy(&lane, &x.v[4 * i], 4);
        r.v[i] = float(int32_t(lane << (32 - bits - bits * field)) >> (32 - bits));
    }
    return r;
}
inline Word load_word(const int8_t *a) { return {{a[0], a[1], a[2], a[3]}}; }
using PairSums = Ints;
inline Ints whole(PairSums sums) { return sums; }
inline PairSums no_pairs() { return set_int(0); }
// Codes from a damaged file may overflow: then the sum wraps, as it does elsewhere.
inline PairSums dot_pairs(PairSums acc, Bytes w, Word a) {
    const uint8_t *pair = reinterpret_cast<const uint8_t *>(a.v);
    EDGE_LANES for (int half = 0; half < 2; ++half) {
        const int32_t product = int32_t(half_of(&w.v[4 * i], half)) * half_of(pair, half);
        acc.v[i] = int32_t(uint32_t(acc.v[i]) + uint32_t(product));
    }
    return acc;
}
using Fours = Bytes;
using FourSums = Ints;
struct FourWord {
    int16_t v[4];
};
inline Fours load_fours(const int8_t *p) { return load_bytes(reinterpret_cast<const uint8_t *>(p)); }
inline FourWord load_four_word(const int16_t *a) { return {{a[0], a[1], a[2], a[3]}}; }
inline FourSums no_fours() { return set_int(0); }
inline FourSums dot_fours(FourSums acc, Fours w, FourWord a) {
    EDGE_LANES for (int b = 0; b < 4; ++b) acc.v[i] += int32_t(int8_t(w.v[4 * i + b])) * a.v[b];
    return acc;
}
inline Ints dot_small(Ints acc, Bytes w, Word a) {
    EDGE_LANES for (int b = 0; b < 4; ++b) acc.v[i] += int32_t(w.v[4 * i + b]) * a.v[b];
    return acc;
}
inline Ints dot_biased(Ints acc, Bytes w, Word a) { return dot_small(acc, w, a); }
inline Ints dot_small(Ints acc, Bytes w, const int8_t *a) { return dot_small(acc, w, load_word(a)); }
inline Ints dot_biased(Ints acc, Bytes w, const int8_t *a) { return dot_biased(acc, w, load_word(a)); }
#undef EDGE_LANES
