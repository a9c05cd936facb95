// Norms, SwiGLU, RoPE and conversions. Part of tier.h.

void sum_blocks(const float *x, int64_t columns, int64_t block, float *sums) {
    for (int64_t first = 0; first < columns; first += block) {
        const int64_t last = first + block < columns ? first + block : columns;
        Floats sum = zero();
        for (int64_t i = first; i < last; i += 16) sum = add(sum, load(x + i));
        *sums++ = reduce_add(sum);
    }
}

void rms_norm(const float *x, const float *weight, float eps, float scale, int64_t size, int64_t padded,
              float *out) {
    Floats squares = zero();
    for (int64_t i = 0; i < padded; i += 16) {
        const Floats v = load(x + i);
        squares = fma(v, v, squares);
    }
    const float sum = reduce_add(squares);
    // 1 / sqrt(infinity) would turn an overflow into a row of zeros.
    const Floats inverse = set(sum <= 3.4e38f ? 1.0f / sqrtf(sum / float(size) + eps) : NAN);
    const Floats factor = set(scale);
    for (int64_t i = 0; i < padded; i += 16) {
        store(out + i, mul(mul(mul(load(x + i), inverse), load(weight + i)), factor));
    }
}

// e^x with a relative error below 3e-7; about 1e-38 below -87 and for -infinity, NaN for NaN.
inline Floats exponential(Floats x) {
    const Floats lowest = set(-87.33654f);
    const Floats clamped = max(lowest, x);
    const Floats n = round_even(mul(clamped, set(1.44269504f)));
    Floats r = fma(n, set(-0.693359375f), clamped);
    r = fma(n, set(2.12194440e-4f), r);
    Floats p = set(1.9875691500e-4f);
    p = fma(p, r, set(1.3981999507e-3f));
    p = fma(p, r, set(8.3334519073e-3f));
    p = fma(p, r, set(4.1665795894e-2f));
    p = fma(p, r, set(1.6666665459e-1f));
    p = fma(p, r, set(5.0000001201e-1f));
    p = add(fma(mul(r, r), p, r), set(1.0f));
    return scale_by_power(p, n);
}

void swiglu(const float *gate, const float *up, int64_t count, float *out) {
    const Floats one = set(1.0f), highest = set(88.0f);
    for (int64_t i = 0; i < count; i += 16) {
        const Floats g = load(gate + i);
        // -max(-x, -88) = min(x, 88): e^88 is still finite
        const Floats negative = sub(zero(), max(g, sub(zero(), highest)));
        store(out + i, mul(divide(g, add(one, exponential(negative))), load(up + i)));
    }
}

void rope(float *head, const float *cosines, const float *sines, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + half] = b * cosines[i] + a * sines[i];
    }
}

void to_half(const float *x, int64_t count, uint16_t *out) {
    // Saturated: an infinity in the cache would spoil even the rows that do not see it.
    const Floats largest = set(65504.0f), lowest = set(-65504.0f);
    for (int64_t i = 0; i < count; i += 16) store_half(out + i, min(largest, max(lowest, load(x + i))));
}

bool all_finite(const float *x, int64_t count) {
    Floats sum = zero();
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) sum = fma(load(x + i), zero(), sum);
    float rest = reduce_add(sum);  // 0 * infinity and 0 * NaN are NaN
    for (; i < count; ++i) rest += x[i] * 0.0f;
    return rest == 0.0f;
}
