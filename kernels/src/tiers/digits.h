// Numbers of attention over an int8 cache: rows of the cache, and what multiplies them. Part of tier.h.
//
// The cache keeps 8 bits. What multiplies it keeps 14, as two digits of 7: x = (128 high + low) * scale, both at
// most 64 in size, which dot_digits takes exactly.

constexpr float digit_base = 128.0f, largest_code = 8192.0f;

// x, at most `peak` in size, as digits; returns the scale, NaN if x is not finite. offsets: where sums of products
// with biased bytes start.
inline float to_digits(const float *x, int64_t count, float peak, int8_t *high, int8_t *low,
                       int32_t *offsets) {
    const float inverse = peak > 0.0f ? largest_code / peak : 0.0f;
    const bool usable = inverse <= 3.0e38f;  // else all is as good as zero
    const Floats factor = set(usable ? inverse : 0.0f);
    Floats high_sum = zero(), low_sum = zero();  // of integers: exact
    for (int64_t i = 0; i < count; i += 16) {
        const Floats code = round_even(mul(load(x + i), factor));
        const Floats upper = round_even(mul(code, set(1.0f / digit_base)));
        const Floats lower = fma(upper, set(-digit_base), code);
        high_sum = add(high_sum, upper);
        low_sum = add(low_sum, lower);
        store_int8(high + i, upper);
        store_int8(low + i, lower);
    }
    const float high_total = reduce_add(high_sum), low_total = reduce_add(low_sum);
    const bool finite = high_total == high_total;
    offsets[0] = finite ? (digit_offset - 128) * int32_t(high_total) : 0;
    offsets[1] = finite ? (digit_offset - 128) * int32_t(low_total) : 0;
    return !finite ? NAN : usable ? peak / largest_code : 0.0f;
}

inline float largest_size(const float *x, int64_t count) {
    Floats largest = zero();
    for (int64_t i = 0; i < count; i += 16) largest = max(largest, absolute(load(x + i)));
    return reduce_max(largest);
}

inline Floats digits_to_float(Ints high, Ints low) {
    return fma(to_float(high), set(digit_base), to_float(low));
}

float quantize_row(const float *x, int64_t count, uint8_t *codes) {
    const float peak = largest_size(x, count), inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
    const bool usable = inverse <= 3.0e38f;
    const Floats factor = set(usable ? inverse : 0.0f);
    Floats sum = zero();
    for (int64_t i = 0; i < count; i += 16) {
        const Floats code = round_even(mul(load(x + i), factor));
        sum = add(sum, code);
        int8_t signed_codes[16];
        store_int8(signed_codes, code);
        for (int j = 0; j < 16; ++j) codes[i + j] = uint8_t(signed_codes[j] + 128);
    }
    const float total = reduce_add(sum);
    return total != total ? NAN : usable ? peak / 127.0f : 0.0f;
}
