// Register-only loops: the most that this tier's arithmetic can do, to hold the kernels against. Part of tier.h.

// Runs 64 * peak_chains int8 multiply-adds per iteration; returns something that depends on all of them.
int64_t int8_peak(int64_t iterations) {
    uint8_t weights[64];
    int8_t codes[4] = {1, -2, 3, -1};
    memset(weights, 5, sizeof weights);
    const Bytes w = load_bytes(weights);
    Ints sums[peak_chains];
    for (int c = 0; c < peak_chains; ++c) sums[c] = set_int(c);
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
        for (int c = 0; c < peak_chains; ++c) sums[c] = dot_small(sums[c], w, load_word(codes));
    }
    Floats total = zero();
    for (int c = 0; c < peak_chains; ++c) total = add(total, to_float(sums[c]));
    return int64_t(reduce_add(total));
}

// Runs 16 * peak_chains float multiply-adds per iteration.
int64_t float_peak(int64_t iterations) {
    const Floats a = set(0.999f), b = set(0.001f);
    Floats sums[peak_chains];
    for (int c = 0; c < peak_chains; ++c) sums[c] = set(float(c));
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
        for (int c = 0; c < peak_chains; ++c) sums[c] = fma(sums[c], a, b);
    }
    Floats total = zero();
    for (int c = 0; c < peak_chains; ++c) total = add(total, sums[c]);
    return int64_t(reduce_add(total));
}

constexpr int64_t int8_peak_operations = 64 * peak_chains, float_peak_operations = 16 * peak_chains;
