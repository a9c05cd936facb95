// Numbers of attention over a cache of integers: rows of the cache, and what multiplies them. Part of tier.h.
//
// The cache keeps 8 or 16 bits, what multiplies it 16. Their products are summed in 32 bits without overflow. Of 16-bit
// keys and of queries the Euclidean length is bounded, so no sum of their products exceeds its square
// (Cauchy-Schwarz), and neither does any part of it. Of values the largest element is bounded, and of the weights of a
// block of positions the sum.

constexpr float longest_code = 32000.0f;  // of keys and queries; rounding adds half the root of head_dim
constexpr float largest_value = 32767.0f, largest_int8 = 127.0f;
constexpr float total_weight = 32000.0f;

inline void store_codes(int8_t *p, Floats x) { store_int8(p, x); }
inline void store_codes(int16_t *p, Floats x) {
    int16_t both[32];
    store_int16(both, x, zero());
    memcpy(p, both, 32);
}

// x as codes, `most` for numbers of the size `size`; returns the scale, NaN if x is not finite.
template <class Code>
inline float to_codes(const float *x, int64_t count, float size, float most, Code *codes) {
    const float inverse = most / size;
    // Not for zero, nor where 1 / size overflows: that is as good as zero.
    const bool usable = size > 0.0f && inverse <= 3.0e38f;
    const Floats factor = set(usable ? inverse : 0.0f);
    for (int64_t i = 0; i < count; i += 16) store_codes(codes + i, mul(load(x + i), factor));
    return size != size || size > 3.4e38f ? NAN : usable ? size / most : 0.0f;
}

// Where squares would leave the normal range, x is as good as zero.
inline float length(const float *x, int64_t count) {
    Floats squares = zero();
    for (int64_t i = 0; i < count; i += 16) squares = fma(load(x + i), load(x + i), squares);
    const float sum = reduce_add(squares);
    return sum < 1e-30f ? 0.0f : sqrtf(sum);
}

float quantize_key(const float *x, int64_t count, int16_t *codes) {
    return to_codes(x, count, length(x, count), longest_code, codes);
}

// The largest size of an element; NaN if x is not finite.
inline float largest_size(const float *x, int64_t count) {
    Floats largest = zero(), nothing = zero();
    for (int64_t i = 0; i < count; i += 16) {
        largest = max(largest, absolute(load(x + i)));
        nothing = fma(load(x + i), zero(), nothing);  // 0 * infinity and 0 * NaN are NaN
    }
    return reduce_max(largest) + reduce_add(nothing);
}

float quantize_value(const float *x, int64_t count, int16_t *codes) {
    return to_codes(x, count, largest_size(x, count), largest_value, codes);
}

float quantize_int8(const float *x, int64_t count, int8_t *codes) {
    return to_codes(x, count, largest_size(x, count), largest_int8, codes);
}
