// The rotation of rows that become 4 bits: orthonormal and symmetric, so its own inverse. Part of tier.h.
//
// A Hadamard transformation over the largest power of two that divides the size, and a reflection over the rest of it.
// What is the same in all elements would end up in one of them: the signs of some are turned before and after.

constexpr bool is_turned(int element) {
    return (element & element >> 1 & 1) != (element >> 2 & element >> 3 & 1);
}

struct HadamardSigns {
    float rows[16][16];

    constexpr HadamardSigns() : rows() {
        for (int i = 0; i < 16; ++i) {
            for (int j = 0; j < 16; ++j) {
                const bool minus = __builtin_parity(unsigned(i & j)) != 0;
                rows[i][j] = minus != (is_turned(i) != is_turned(j)) ? -1.0f : 1.0f;
            }
        }
    }
};
alignas(64) constexpr HadamardSigns hadamard;

void rotate(float *x, int64_t count) {
    const int64_t power = count & -count, parts = count / power;
    const float factor = 1.0f / sqrtf(float(power));
    for (int64_t at = 0; at < count; at += 16) {
        Floats sums = zero();
        for (int i = 0; i < 16; ++i) sums = fma(set(x[at + i] * factor), load(hadamard.rows[i]), sums);
        store(x + at, sums);
    }
    for (int64_t step = 16; step < power; step *= 2) {
        for (int64_t first = 0; first < count; first += 2 * step) {
            for (int64_t i = first; i < first + step; i += 16) {
                const Floats a = load(x + i), b = load(x + i + step);
                store(x + i, add(a, b));
                store(x + i + step, sub(a, b));
            }
        }
    }
    for (int64_t i = 0; parts > 1 && i < power; i += 16) {
        Floats sum = zero();
        for (int64_t at = i; at < count; at += power) sum = add(sum, load(x + at));
        const Floats twice_mean = mul(sum, set(2.0f / float(parts)));
        for (int64_t at = i; at < count; at += power) store(x + at, sub(load(x + at), twice_mean));
    }
}
