// Linear kernels: tiles of 16 outputs times tokens. Part of tier.h.

// Activation blocks that wait for the scales at their group's end: reading those early would break up the stream.
constexpr int most_waiting = 32;

template <int M>
inline void add_blocks(const Matrix &m, const uint16_t *tail, Floats (*blocks)[M], const float *sums,
                       int count, Floats *total) {
    const Floats scale = load_half(tail);
    for (int b = 0; b < count; ++b, sums += M) {
        for (int t = 0; t < M; ++t) total[t] = fma(blocks[b][t], scale, total[t]);
        if (m.minimum) {
            const Floats minimum = load_half(tail + tile_rows);
            for (int t = 0; t < M; ++t) total[t] = fma(minimum, set(sums[t]), total[t]);
        }
    }
}

// Integer dot products with a batch of M quantized tokens, over weights as they come from memory.
template <int bits, int M>
void linear_int8(const Matrix &m, const uint8_t *at, const Activations &a, int64_t token, float *out) {
    constexpr int field_count = 8 / bits, block_columns = 4 * field_count;
    // A field that stays where it is in its byte saves a shift, but its sums need a chain of their own.
    constexpr bool in_place = fields_in_place && bits < 8 && M <= 2;
    // Independent sums hide the latency of the dot products.
    constexpr int chains = in_place ? field_count : M <= 2 ? 2 : 1;
    const int8_t *codes = a.codes + token * a.stride;
    const float *scales = a.scales + token * a.blocks, *offsets = a.offsets + token * a.blocks;
    const float *sums = a.sums + token * a.blocks;
    const int32_t *corrections = a.corrections + token * a.blocks;
    Floats total[M], pending[most_waiting][M];
    int waiting = 0;
    for (int t = 0; t < M; ++t) total[t] = zero();
    for (int64_t start = 0; start < m.padded; start += m.group) {
        const int64_t stop = start + m.group < m.padded ? start + m.group : m.padded;
        for (int64_t first = start; first < stop; first += m.block) {
            const int64_t last = first + m.block < stop ? first + m.block : stop;
            Ints sum[M][chains];
            for (int t = 0; t < M; ++t) {
                sum[t][0] = set_int(corrections[t]);
                for (int c = 1; c < chains; ++c) sum[t][c] = set_int(0);
            }
            for (int64_t column = first; column < last; column += 2 * block_columns) {
#pragma GCC unroll 2
                for (int j = 0; j < 2; ++j) {
                    prefetch(at + prefetch_distance);
                    const Bytes bytes = load_bytes(at);
                    at += 64;
#pragma GCC unroll 4
                    for (int f = 0; f < field_count; ++f) {
                        const Bytes weights =
                            in_place ? field_in_place<bits>(bytes, f) : fields<bits>(bytes, f);
                        const int chain = (j * field_count + f) % chains;
#pragma GCC unroll 8
                        for (int t = 0; t < M; ++t, codes += 4) {
                            const Word x = load_word(codes);
                            sum[t][chain] = bits == 8 ? dot_biased(sum[t][chain], weights, x)
                                                      : dot_small(sum[t][chain], weights, x);
                        }
                    }
                }
            }
            for (int t = 0; t < M; ++t) {
                Ints whole = sum[t][0];
                for (int c = 1; c < chains; ++c) {
                    whole = add(whole, in_place ? shift_right(sum[t][c], c * bits) : sum[t][c]);
                }
                pending[waiting][t] = scaled(whole, set(scales[t]), set(offsets[t]));
            }
            if (++waiting == most_waiting || last == stop) {
                // A pointer from `at`, so that the compiler does not read the scales before the codes.
                const uint16_t *tail = reinterpret_cast<const uint16_t *>(at + (stop - last) * 2 * bits);
                add_blocks<M>(m, tail, pending, sums - (waiting - 1) * M, waiting, total);
                waiting = 0;
            }
            scales += M;
            offsets += M;
            sums += M;
            corrections += M;
        }
        at += m.group_bytes - (stop - start) * 2 * bits;
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

template <int bits>
LinearFunction pick_int8(int count) {
    static const LinearFunction table[] = {
        linear_int8<bits, 1>, linear_int8<bits, 2>, linear_int8<bits, 3>, linear_int8<bits, 4>,
#if EDGE_MAX_TOKENS > 4
        linear_int8<bits, 5>, linear_int8<bits, 6>, linear_int8<bits, 7>, linear_int8<bits, 8>,
#endif
    };
    static_assert(sizeof table / sizeof *table == max_tokens, "one function for every batch size");
    return table[count - 1];
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

template <int bits>
void linear_quantized(const Matrix &m, int64_t tile, int tiles, const Activations &a, int64_t token,
                      int count, float *out) {
    if (count > a.batch) {
        for (int i = 0; i < tiles; i += block_tiles) {
            const int now = tiles - i < block_tiles ? tiles - i : block_tiles;
            linear_block<bits>(m, tile + i, now, a, token, count, out + i * count * linear_lanes);
        }
        return;
    }
    const LinearFunction run = pick_int8<bits>(count);
    for (int i = 0; i < tiles; ++i) run(m, m.tile(tile + i), a, token, out + i * count * linear_lanes);
}

void linear(const Matrix &m, int64_t tile, int tiles, const Activations &a, int64_t token, int count,
            float *out) {
    if (m.kind != EDGE_F16 && a.codes != nullptr) {
        const auto run = m.kind == EDGE_INT4   ? linear_quantized<4>
                         : m.kind == EDGE_INT8 ? linear_quantized<8>
                                               : linear_quantized<2>;
        run(m, tile, tiles, a, token, count, out);
        return;
    }
    for (int i = 0; i < tiles; ++i) {
        for (int done = 0; done < count; done += max_exact_tokens) {
            const int now = count - done < max_exact_tokens ? count - done : max_exact_tokens;
            const LinearFunction run = m.kind == EDGE_F16    ? pick_half(now)
                                       : m.kind == EDGE_INT4 ? pick_exact<4>(now)
                                       : m.kind == EDGE_INT8 ? pick_exact<8>(now)
                                                             : pick_exact<2>(now);
            run(m, m.tile(tile + i), a, token + done, out + (i * count + done) * linear_lanes);
        }
    }
}
