// Activations to int8. Part of tier.h.

// 22 bits of mantissa, so that the product with the sum bias (1.5 x 2^23) is exact.
inline float truncated(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits &= ~3u;
    memcpy(&x, &bits, 4);
    return x;
}

#if !defined(EDGE_REDUCE_EACH)
// Element b of the result combines all lanes of rows[b].
template <class Combine>
Floats reduce_each(Floats *rows, const Combine &combine) {
    transpose(rows);
    for (int step = 8; step; step /= 2) {
        for (int i = 0; i < step; ++i) rows[i] = combine(rows[i], rows[i + step]);
    }
    return rows[0];
}
#endif

constexpr int most_blocks = 16;  // at once, so that no reduction runs within one vector

// rest, unless nullptr: x less what the codes stand for.
void quantize_blocks(const float *x, int64_t columns, int64_t block, int32_t zero_code,
                     const QuantizedRow &out, float *rest) {
    const int blocks = int((columns + block - 1) / block);
    const int64_t count = out.count;
    Floats rows[most_blocks];
    for (int b = 0; b < most_blocks; ++b) {
        const int64_t first = b * block, last = first + block < columns ? first + block : columns;
        rows[b] = zero();
        for (int64_t i = first; i < last; i += 16) rows[b] = max(rows[b], absolute(load(x + i)));
    }
    alignas(64) float factors[most_blocks], ratios[most_blocks], totals[most_blocks];
    const Floats peaks = reduce_each(rows, [](Floats a, Floats b) { return max(a, b); });
    store(factors, divide(set(127.0f), peaks));
    store(ratios, divide(peaks, set(127.0f)));
    // Below the normal range 127 / peak overflows; such a block is zero for all that follows.
    for (int b = 0; b < most_blocks; ++b) {
        factors[b] = factors[b] <= 3.0e38f ? factors[b] : 0.0f;
        ratios[b] = factors[b] > 0.0f ? truncated(ratios[b]) : 0.0f;
    }
    int8_t *codes = out.codes;
    for (int b = 0; b < blocks; ++b) {
        const int64_t first = b * block, last = first + block < columns ? first + block : columns;
        const Floats factor = set(factors[b]), scale = set(ratios[b]);
        rows[b] = zero();
        for (int64_t i = first; i < last; i += 16, codes += 16 * count) {
            const Floats rounded = round_even(mul(load(x + i), factor));
            rows[b] = add(rows[b], rounded);  // of integers: exact
            if (rest != nullptr) store(rest + i, sub(load(x + i), mul(rounded, scale)));
            if (count == 1) {
                store_int8(codes, rounded);
                continue;
            }
            int8_t words[16];
            store_int8(words, rounded);
            for (int word = 0; word < 4; ++word) memcpy(codes + 4 * word * count, words + 4 * word, 4);
        }
    }
    store(totals, reduce_each(rows, [](Floats a, Floats b) { return add(a, b); }));
    for (int b = 0; b < blocks; ++b) {
        // A sum that is not finite tells of an infinity or NaN, which must not vanish in the codes.
        const bool finite = totals[b] == totals[b];
        const float scale = finite ? ratios[b] : NAN;
        const int64_t at = b * count;
        out.scales[at] = scale;
        out.corrections[at] = sum_bias - (finite ? zero_code * int32_t(totals[b]) : 0);
        out.offsets[at] = -biased_zero * scale;
        out.sums[at] = scale * totals[b];
    }
}

void quantize(const float *x, int64_t columns, int64_t block, int32_t zero_code, const QuantizedRow *out,
              int rows) {
    alignas(64) float rest[most_blocks * max_block];
    for (int64_t first = 0, blocks = 0; first < columns; first += most_blocks * block) {
        const int64_t left = columns - first, now = left < most_blocks * block ? left : most_blocks * block;
        const float *from = x + first;
        for (int r = 0; r < rows; ++r, from = rest) {
            QuantizedRow part = out[r];
            part.codes += first * part.count;
            part.scales += blocks * part.count;
            part.corrections += blocks * part.count;
            part.offsets += blocks * part.count;
            part.sums += blocks * part.count;
            quantize_blocks(from, now, block, zero_code, part, r + 1 < rows ? rest : nullptr);
        }
        blocks += most_blocks;
    }
}
