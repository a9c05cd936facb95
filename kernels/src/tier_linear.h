// Linear kernels: tiles of 16 outputs times a batch of tokens. Part of tier.h.

constexpr int prefetch_distance = 2048;  // bytes: about what one core's reads need to stay in flight

// Integer dot products with a batch of M quantized tokens. `whole_groups`: every activation block is a weight group.
template <int bits, int M, bool whole_groups>
void linear_int8(const Matrix &m, const uint8_t *at, const Activations &a, int64_t token, float *out) {
    constexpr int field_count = 8 / bits, block_columns = 4 * field_count;
    constexpr int chains = M <= 2 ? 2 : 1;  // independent sums hide the latency of the dot products
    const bool has_minimum = m.minimum;
    const int8_t *codes = a.codes + token * a.stride;
    const float *scales = a.scales + token * a.blocks, *sums = a.sums + token * a.blocks;
    const int32_t *corrections = a.corrections + token * a.blocks;
    Floats total[M];
    for (int t = 0; t < M; ++t) total[t] = zero();
    for (int64_t start = 0; start < m.padded; start += m.group) {
        const int64_t stop = start + m.group < m.padded ? start + m.group : m.padded;
        const float *group_sums = sums;
        Floats partial[M];
        for (int t = 0; t < M; ++t) partial[t] = zero();
        int64_t first = start;
        do {
            const int64_t last = whole_groups || first + m.block > stop ? stop : first + m.block;
            Ints sum[M][chains];
            for (int t = 0; t < M; ++t) {
                sum[t][0] = set_int(corrections[t]);
                for (int c = 1; c < chains; ++c) sum[t][c] = set_int(0);
            }
            for (int64_t column = first; column < last; column += 2 * block_columns) {
#pragma GCC unroll 2
                for (int j = 0; j < 2; ++j) {
                    if (M <= 4) prefetch(at + prefetch_distance);  // larger batches wait for arithmetic
                    const Bytes bytes = load_bytes(at);
                    at += 64;
#pragma GCC unroll 4
                    for (int f = 0; f < field_count; ++f) {
                        const Bytes weights = fields<bits>(bytes, f);
                        const int chain = (j * field_count + f) % chains;
#pragma GCC unroll 8
                        for (int t = 0; t < M; ++t, codes += 4) {
                            sum[t][chain] = bits == 8 ? dot_biased(sum[t][chain], weights, codes)
                                                      : dot_small(sum[t][chain], weights, codes);
                        }
                    }
                }
            }
            for (int t = 0; t < M; ++t) {
                Ints whole = sum[t][0];
                for (int c = 1; c < chains; ++c) whole = add(whole, sum[t][c]);
                const Floats scaled = mul(to_float(whole), set(scales[t]));
                partial[t] = whole_groups ? scaled : add(partial[t], scaled);
            }
            scales += M;
            sums += M;
            corrections += M;
            first += m.block;
        } while (!whole_groups && first < stop);
        const Floats scale = load_half(reinterpret_cast<const uint16_t *>(at));
        at += 2 * linear_lanes;
        for (int t = 0; t < M; ++t) total[t] = fma(partial[t], scale, total[t]);
        if (has_minimum) {
            const Floats minimum = load_half(reinterpret_cast<const uint16_t *>(at));
            at += 2 * linear_lanes;
            for (int t = 0; t < M; ++t) {
                float sum = 0.0f;
                for (const float *s = group_sums + t; s < sums; s += M) sum += *s;
                total[t] = fma(minimum, set(sum), total[t]);
            }
        }
    }
    for (int t = 0; t < M; ++t) store(out + t * linear_lanes, total[t]);
}

// Float products with the dequantized weights, M tokens at once.
template <int bits, int M>
void linear_exact(const Matrix &m, const uint8_t *at, const Activations &a, int64_t token, float *out) {
    constexpr int field_count = 8 / bits;
    const Floats offset = set(float(m.zero_code));
    Floats total[M];
    for (int t = 0; t < M; ++t) total[t] = zero();
    int64_t block = 0;
    for (int64_t start = 0; start < m.padded; start += m.group) {
        const int64_t stop = start + m.group < m.padded ? start + m.group : m.padded;
        Floats partial[M][4];
        for (int t = 0; t < M; ++t) {
            for (int c = 0; c < 4; ++c) partial[t][c] = zero();
        }
        for (int64_t column0 = start; column0 < stop; column0 += 4 * field_count, at += 64) {
            const Bytes bytes = load_bytes(at);
            for (int f = 0; f < field_count; ++f) {
                const Bytes codes = fields<bits>(bytes, f);
#pragma GCC unroll 4
                for (int b = 0; b < 4; ++b) {
                    const Floats weights = sub(column(codes, b), offset);
                    for (int t = 0; t < M; ++t) {
                        const float x = a.values[(token + t) * a.stride + column0 + 4 * f + b];
                        partial[t][b] = fma(weights, set(x), partial[t][b]);
                    }
                }
            }
        }
        const int64_t first_block = block;
        for (int64_t first = start; first < stop; first += m.block) ++block;
        const Floats scale = load_half(reinterpret_cast<const uint16_t *>(at));
        at += 2 * linear_lanes;
        for (int t = 0; t < M; ++t) {
            const Floats sum = add(add(partial[t][0], partial[t][1]), add(partial[t][2], partial[t][3]));
            total[t] = fma(sum, scale, total[t]);
        }
        if (m.minimum) {
            const Floats minimum = load_half(reinterpret_cast<const uint16_t *>(at));
            at += 2 * linear_lanes;
            for (int t = 0; t < M; ++t) {
                float sum = 0.0f;
                for (int64_t i = first_block; i < block; ++i) sum += a.sums[(token + t) * a.blocks + i];
                total[t] = fma(minimum, set(sum), total[t]);
            }
        }
    }
    for (int t = 0; t < M; ++t) store(out + t * linear_lanes, total[t]);
}

template <int M>
void linear_half(const Matrix &m, const uint8_t *at, const Activations &a, int64_t token, float *out) {
    Floats total[M][4];
    for (int t = 0; t < M; ++t) {
        for (int c = 0; c < 4; ++c) total[t][c] = zero();
    }
    for (int64_t column = 0; column < m.padded; column += 4) {
        prefetch(at + prefetch_distance);
        prefetch(at + prefetch_distance + 64);
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c, at += 2 * linear_lanes) {
            const Floats weights = load_half(reinterpret_cast<const uint16_t *>(at));
            for (int t = 0; t < M; ++t) {
                total[t][c] = fma(weights, set(a.values[(token + t) * a.stride + column + c]), total[t][c]);
            }
        }
    }
    for (int t = 0; t < M; ++t) {
        store(out + t * linear_lanes, add(add(total[t][0], total[t][1]), add(total[t][2], total[t][3])));
    }
}

using LinearFunction = void (*)(const Matrix &, const uint8_t *, const Activations &, int64_t, float *);

template <int bits, bool whole_groups>
LinearFunction pick_int8(int count) {
    static const LinearFunction table[] = {
        linear_int8<bits, 1, whole_groups>, linear_int8<bits, 2, whole_groups>,
        linear_int8<bits, 3, whole_groups>, linear_int8<bits, 4, whole_groups>,
#if EDGE_MAX_TOKENS > 4
        linear_int8<bits, 5, whole_groups>, linear_int8<bits, 6, whole_groups>,
        linear_int8<bits, 7, whole_groups>, linear_int8<bits, 8, whole_groups>,
#endif
    };
    static_assert(sizeof table / sizeof *table == max_tokens, "one function for every batch size");
    return table[count - 1];
}

template <int bits>
LinearFunction pick_int8(const Matrix &m, int count) {
    return m.block == m.group ? pick_int8<bits, true>(count) : pick_int8<bits, false>(count);
}

constexpr int max_exact_tokens = 4;

template <int bits>
LinearFunction pick_exact(int count) {
    static const LinearFunction table[] = {linear_exact<bits, 1>, linear_exact<bits, 2>,
                                           linear_exact<bits, 3>, linear_exact<bits, 4>};
    return table[count - 1];
}

LinearFunction pick_half(int count) {
    static const LinearFunction table[] = {linear_half<1>, linear_half<2>, linear_half<3>, linear_half<4>};
    return table[count - 1];
}

void linear(const Matrix &m, int64_t tile, const Activations &a, int64_t token, int count, float *out) {
    const uint8_t *data = m.tile(tile);
    if (m.kind != EDGE_F16 && a.codes != nullptr) {
        const LinearFunction run = m.kind == EDGE_INT4   ? pick_int8<4>(m, count)
                                   : m.kind == EDGE_INT8 ? pick_int8<8>(m, count)
                                                         : pick_int8<2>(m, count);
        run(m, data, a, token, out);
        return;
    }
    for (int done = 0; done < count; done += max_exact_tokens) {
        const int now = count - done < max_exact_tokens ? count - done : max_exact_tokens;
        const LinearFunction run = m.kind == EDGE_F16    ? pick_half(now)
                                   : m.kind == EDGE_INT4 ? pick_exact<4>(now)
                                   : m.kind == EDGE_INT8 ? pick_exact<8>(now)
                                                         : pick_exact<2>(now);
        run(m, data, a, token + done, out + done * linear_lanes);
    }
}
