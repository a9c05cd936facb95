// Numbers of attention over a cache of integers: rows of the cache, and what multiplies them. Part of tier.h.
//
// The cache keeps 4, 8 or 16 bits, what multiplies it 16. Their products are summed in 32 bits without overflow. Of 16-bit
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

// A rotated row has nearly normal elements, and these are the sixteen levels that lose least of them (Lloyd-Max), as
// int8 codes: what reads them is the arithmetic of int8.
alignas(16) constexpr int8_t level_codes[16] = {-127, -96, -75, -58, -44, -31, -18, -6,
                                                6,    18,  31,  44,  58,  75,  96,  127};
constexpr float top_levels[] = {2.2f, 2.7f, 3.2f};  // in standard deviations: the best for a row is kept

float quantize_int4(const float *x, int64_t count, uint8_t *codes) {
    const float size = largest_size(x, count), inverse = 1.0f / size;
    const bool usable = size > 0.0f && inverse <= 3.0e38f;
    float row[max_head_dim], levels[max_head_dim];
    for (int64_t i = 0; i < count; i += 16) {
        store(row + i, mul(load(x + i), set(usable ? inverse : 0.0f)));
    }
    rotate(row, count);
    const float deviation = length(row, count) / sqrtf(float(count));
    float kept = -1.0f, scale = 0.0f;  // kept: what the levels explain of the square of the row
    memset(codes, 0, uint64_t(count));
    for (const float top : top_levels) {
        const float unit = deviation * (top / largest_int8);
        uint8_t tried[max_head_dim];
        for (int64_t i = 0; i < count; ++i) {
            int code = 0;
            for (int k = 1; k < 16; ++k) {
                const float middle = 0.5f * float(level_codes[k - 1] + level_codes[k]);
                code += row[i] > unit * middle;
            }
            tried[i] = uint8_t(code);
        }
        for (int64_t i = 0; i < count; ++i) levels[i] = float(level_codes[tried[i]]);
        Floats products = zero(), squares = zero();
        for (int64_t i = 0; i < count; i += 16) {
            products = fma(load(row + i), load(levels + i), products);
            squares = fma(load(levels + i), load(levels + i), squares);
        }
        const float product = reduce_add(products),
                    factor = product / reduce_add(squares);  // of least squares
        if (product * factor > kept) {
            kept = product * factor;
            scale = size * factor;
            memcpy(codes, tried, uint64_t(count));
        }
    }
    return size != size || size > 3.4e38f ? NAN : usable ? scale : 0.0f;
}

// The int8 codes of `count` levels, a multiple of 128; two that are 64 apart share a byte. `following` is fetched.
inline void unpack(const uint8_t *packed, int64_t count, int8_t *codes, const uint8_t *following) {
    uint8_t *out = reinterpret_cast<uint8_t *>(codes);
    for (int64_t i = 0; i < count; i += 128, packed += 64, following += 64) {
        prefetch_far(following);
        const Bytes both = load_bytes(packed);
        store_bytes(out + i, look_up(level_codes, fields<4>(both, 0)));
        store_bytes(out + i + 64, look_up(level_codes, fields<4>(both, 1)));
    }
}
