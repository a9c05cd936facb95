// The bodies of the sampler's passes. passes.h includes this file once for every instruction set, with
// EDGE_VECTOR_LANES floats to a vector; the vector types are those of GCC and Clang.
//
// Weights are padded to whole chunks, logits are not.

constexpr int lanes = EDGE_VECTOR_LANES;
using Floats __attribute__((vector_size(EDGE_VECTOR_LANES * 4))) = float;
using Ints __attribute__((vector_size(EDGE_VECTOR_LANES * 4))) = int32_t;

inline Floats load(const float *x) {
    Floats v;
    std::memcpy(&v, x, sizeof v);
    return v;
}

inline Floats splat(float x) { return x - Floats{}; }

inline float sum(Floats v) {
    float total = 0;
    for (int j = 0; j < lanes; ++j) total += v[j];
    return total;
}

// `size` values of x from `begin` on, in `tail` padded with -infinity where x ends among them.
inline const float *piece(const float *x, int64_t n, int64_t begin, int64_t size, float *tail) {
    if (n - begin >= size) return x + begin;
    for (int64_t i = 0; i < size; ++i) tail[i] = begin + i < n ? x[begin + i] : -infinity;
    return tail;
}

// The largest logit of every block; true if there is NaN or +infinity anywhere.
inline bool max(const float *x, int64_t n, float *peaks) {
    float tail[block_size];
    Ints finite = ~Ints{};
    for (int64_t b = 0; b < block_count(n); ++b) {
        const float *block = piece(x, n, b * block_size, block_size, tail);
        Floats m = splat(-infinity);
        for (int64_t i = 0; i < block_size; i += lanes) {
            const Floats v = load(block + i);
            finite &= v < splat(infinity);
            m = m < v ? v : m;
        }
        float peak = m[0];
        for (int j = 1; j < lanes; ++j) peak = peak < m[j] ? m[j] : peak;
        peaks[b] = peak;
    }
    bool bad = false;
    for (int j = 0; j < lanes; ++j) bad |= finite[j] == 0;
    return bad;
}

// exp(x) for x <= 0, 0 below -87; relative error about 1e-7 (Cephes' polynomial).
inline Floats exp_negative(Floats x) {
    const Ints tiny = x < splat(-87.0f);
    x = tiny ? splat(-87.0f) : x;
    const Floats shifted = x * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
    const Floats n = shifted - 12582912.0f;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Ints bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;  // the integer sits in the low bits of `shifted`
    Floats scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return tiny ? splat(0.0f) : p * scale;
}

// weights = exp((x - max) * inverse_temperature), with the sum of every chunk; returns the whole sum.
inline double weigh(const float *x, int64_t n, float max, float inverse_temperature, float *weights,
                    float *sums) {
    float tail[chunk_size];
    double total = 0;
    for (int64_t c = 0; c < chunk_count(n); ++c) {
        const float *chunk = piece(x, n, c * chunk_size, chunk_size, tail);
        Floats s = splat(0.0f);
        for (int64_t i = 0; i < chunk_size; i += lanes) {
            const Floats w = exp_negative((load(chunk + i) - max) * inverse_temperature);
            std::memcpy(weights + c * chunk_size + i, &w, sizeof w);
            s += w;
        }
        sums[c] = sum(s);
        total += sums[c];
    }
    return total;
}

// Sum and number of the weights in [low, high).
inline Mass mass(const float *weights, int64_t n, float low, float high) {
    Mass result = {0, 0};
    const Floats floor = splat(low), ceiling = splat(high);
    for (int64_t c = 0; c < chunk_count(n); ++c) {
        Floats s = splat(0.0f);
        Ints count = {};
        for (int64_t i = c * chunk_size; i < (c + 1) * chunk_size; i += lanes) {
            const Floats w = load(weights + i);
            const Ints inside = (w >= floor) & (w < ceiling);
            s += inside ? w : splat(0.0f);
            count -= inside;  // a true lane is -1
        }
        for (int j = 0; j < lanes; ++j) result.count += count[j];
        result.sum += sum(s);
    }
    return result;
}

// Sets the weights outside [low, high) to 0; sums of every chunk, returns the whole sum.
inline double keep(float *weights, int64_t n, float low, float high, float *sums) {
    double total = 0;
    const Floats floor = splat(low), ceiling = splat(high);
    for (int64_t c = 0; c < chunk_count(n); ++c) {
        Floats s = splat(0.0f);
        for (int64_t i = c * chunk_size; i < (c + 1) * chunk_size; i += lanes) {
            Floats w = load(weights + i);
            w = (w >= floor) & (w < ceiling) ? w : splat(0.0f);
            std::memcpy(weights + i, &w, sizeof w);
            s += w;
        }
        sums[c] = sum(s);
        total += sums[c];
    }
    return total;
}

// Sum of weight * (x - max) over the tokens with weight, so that -infinity is harmless.
inline double moment(const float *x, int64_t n, float max, const float *weights) {
    float tail[chunk_size];
    double total = 0;
    for (int64_t c = 0; c < chunk_count(n); ++c) {
        const float *chunk = piece(x, n, c * chunk_size, chunk_size, tail);
        Floats s = splat(0.0f);
        for (int64_t i = 0; i < chunk_size; i += lanes) {
            const Floats w = load(weights + c * chunk_size + i);
            const Floats term = w * (load(chunk + i) - max);
            s += w > splat(0.0f) ? term : splat(0.0f);
        }
        total += sum(s);
    }
    return total;
}

inline const Passes passes = {max, weigh, mass, keep, moment};
