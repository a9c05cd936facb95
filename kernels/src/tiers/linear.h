// Linear kernels: tiles of 16 outputs times tokens. Part of tier.h.

// Activation blocks that wait for the scales at their group's end: reading those early would break up the stream.
constexpr int most_waiting = 32;

inline const uint16_t *tail_at(const uint8_t *at) { return reinterpret_cast<const uint16_t *>(at); }

// The same pointer, but not for the compiler: it would keep what it has read there in memory of its own.
template <class T>
__attribute__((always_inline)) inline const T *unknown(const T *p) {
    asm("" : "+r"(p));
    return p;
}

template <int M>
__attribute__((always_inline)) inline void add_blocks(const Matrix &m, const uint16_t *tail,
                                                      const Floats *blocks, const float *sums, int count,
                                                      Floats (&total)[M]) {
    const Floats scale = load_half(tail);
    for (int b = 0; b < count; ++b, blocks += M, sums += M) {
#pragma GCC unroll 8
        for (int t = 0; t < M; ++t) total[t] = fma(blocks[t], scale, total[t]);
        if (m.minimum) {
            const Floats minimum = load_half(tail + tile_rows);
#pragma GCC unroll 8
            for (int t = 0; t < M; ++t) total[t] = fma(minimum, set(sums[t]), total[t]);
        }
    }
}

// Integer dot products of T tiles, each a stream of its own, with a batch of M quantized tokens, over weights as they
// come from memory; all tiles at the same time, or block after block of one after the other. Tile i of `out` starts at
// i * out_stride. known: columns of a group and of a block, where it is known; otherwise 0.
template <int bits, int M, int T, bool together, int known>
void linear_int8(const Matrix &m, const uint8_t *first_tile, int64_t distance, const Activations &a,
                 int64_t token, float *out, int64_t out_stride) {
    constexpr int tiles = together ? T : 1;
    // Independent sums hide the latency of the dot products. A field that stays where it is in its byte saves a shift,
    // but its sums need a chain of their own; two chains for four fields take the upper half of a byte shifted.
    // Short sums need none: what is added to them comes at once.
    constexpr int chains = in_shorts<bits>                                              ? 1
                           : bits == 2 && fields_in_place && M * tiles * 4 <= most_sums ? 4
                           : M * tiles * 2 <= most_sums                                 ? 2
                                                                                        : 1;
    constexpr bool in_place = fields_in_place && bits < 8 && chains > 1;
    const int8_t *codes = a.codes + token * a.stride;
    const float *scales = a.scales + token * a.blocks, *offsets = a.offsets + token * a.blocks;
    const float *sums = a.sums + token * a.blocks;
    const int32_t *corrections = a.corrections + token * a.blocks;
    const int64_t group = known ? known : m.group, block = known ? known : m.block;
    const int64_t tail_bytes = m.group_bytes - group * 2 * bits;
    const uint8_t *at[T / tiles][tiles];
    Floats total[T][M], pending[T][most_waiting * M];
    int waiting = 0;
#pragma GCC unroll 2
    for (int i = 0; i < T; ++i) {
        at[i / tiles][i % tiles] = first_tile + i * distance * m.tile_bytes;
#pragma GCC unroll 8
        for (int t = 0; t < M; ++t) total[i][t] = zero();
    }
    for (int64_t start = 0; start < m.padded; start += group) {
        const int64_t stop = known || start + group < m.padded ? start + group : m.padded;
        for (int64_t first = start; first < stop; first += block) {
            const int64_t last = known || first + block < stop ? first + block : stop;
#pragma GCC unroll 2
            for (int s = 0; s < T; s += tiles) {
                const int32_t *const start_at = unknown(corrections);
                const float *const scale_at = unknown(scales), *const offset_at = unknown(offsets);
                Ints sum[tiles][M][chains];
#pragma GCC unroll 2
                for (int i = 0; i < tiles; ++i) {
#pragma GCC unroll 8
                    for (int t = 0; t < M; ++t) {
                        sum[i][t][0] = set_int(start_at[t]);
#pragma GCC unroll 4
                        for (int c = 1; c < chains; ++c) sum[i][t][c] = set_int(0);
                    }
                }
                add_codes<bits>(at[s / tiles], last - first, codes, sum);
#pragma GCC unroll 2
                for (int i = 0; i < tiles; ++i) {
                    Floats scaled_sum[M];
#pragma GCC unroll 8
                    for (int t = 0; t < M; ++t) {
                        Ints whole = sum[i][t][0];
#pragma GCC unroll 4
                        for (int c = 1; c < chains; ++c) {
                            whole = add(whole, in_place ? shift_right(sum[i][t][c], c * bits) : sum[i][t][c]);
                        }
                        scaled_sum[t] = scaled(whole, set(scale_at[t]), set(offset_at[t]));
                    }
                    const uint8_t *const tail = at[s / tiles][i];
                    if (block == group) {
                        add_blocks<M>(m, tail_at(tail), scaled_sum, sums, 1, total[s + i]);
                        continue;
                    }
#pragma GCC unroll 8
                    for (int t = 0; t < M; ++t) pending[s + i][waiting * M + t] = scaled_sum[t];
                    // A pointer from `at`, so that the compiler does not read the scales before the codes.
                    if (waiting + 1 == most_waiting || last == stop) {
                        add_blocks<M>(m, tail_at(tail + (stop - last) * 2 * bits), pending[s + i],
                                      sums - waiting * M, waiting + 1, total[s + i]);
                    }
                }
            }
            waiting = waiting + 1 == most_waiting || last == stop ? 0 : waiting + 1;
            codes += (last - first) * M;
            scales += M;
            offsets += M;
            sums += M;
            corrections += M;
        }
#pragma GCC unroll 2
        for (int i = 0; i < T; ++i) at[i / tiles][i % tiles] += tail_bytes;
    }
#pragma GCC unroll 2
    for (int i = 0; i < T; ++i) {
#pragma GCC unroll 8
        for (int t = 0; t < M; ++t) store(out + i * out_stride + t * linear_lanes, total[i][t]);
    }
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

constexpr int64_t half_columns =
    128;  // of a tile that stay in the L1 cache from one chain of sums to the next

// Four chains of sums for every token: as many at the same time as fit into the registers.
template <int M>
void linear_half(const Matrix &m, const uint8_t *at, const Activations &a, int64_t token, float *out) {
    constexpr int together = M * 4 <= half_sums ? 4 : M * 2 <= half_sums ? 2 : 1;
    const int64_t step = together < 4 ? half_columns : m.padded;
    Floats total[M][4];
    for (int t = 0; t < M; ++t) {
        for (int c = 0; c < 4; ++c) total[t][c] = zero();
    }
    for (int64_t first = 0; first < m.padded; first += step) {
        const int64_t last = first + step < m.padded ? first + step : m.padded;
        const float *const values = a.values + token * a.stride;
#pragma GCC unroll 4
        for (int chain = 0; chain < 4; chain += together) {
            Floats sum[M][together];
            for (int t = 0; t < M; ++t) {
                for (int c = 0; c < together; ++c) sum[t][c] = total[t][chain + c];
            }
            const uint8_t *from = at + (first + chain) * 2 * linear_lanes;
            for (int64_t column = first + chain; column < last; column += 4, from += 8 * linear_lanes) {
                if (chain % 2 == 0) prefetch(from + prefetch_distance);
                if (together == 4) prefetch(from + prefetch_distance + 64);
#pragma GCC unroll 4
                for (int c = 0; c < together; ++c) {
                    const Floats weights =
                        load_half(reinterpret_cast<const uint16_t *>(from + c * 2 * linear_lanes));
                    for (int t = 0; t < M; ++t) {
                        sum[t][c] = fma(weights, set(values[t * a.stride + column + c]), sum[t][c]);
                    }
                }
            }
            for (int t = 0; t < M; ++t) {
                for (int c = 0; c < together; ++c) total[t][chain + c] = sum[t][c];
            }
        }
    }
    for (int t = 0; t < M; ++t) {
        store(out + t * linear_lanes, add(add(total[t][0], total[t][1]), add(total[t][2], total[t][3])));
    }
}

using LinearFunction = void (*)(const Matrix &, const uint8_t *, const Activations &, int64_t, float *);
using StreamFunction = void (*)(const Matrix &, const uint8_t *, int64_t, const Activations &, int64_t,
                                float *, int64_t);

// The sums and totals of two tiles and so many tokens fit into the registers. Those of more do not; long blocks, which
// rarely touch the totals, gain from many independent sums all the same.
constexpr int together_tokens = 6;

template <int bits, int T, int known>
StreamFunction pick_together(int count) {
    static const StreamFunction table[] = {
        linear_int8<bits, 1, T, true, known>, linear_int8<bits, 2, T, true, known>,
        linear_int8<bits, 3, T, true, known>, linear_int8<bits, 4, T, true, known>,
#if EDGE_MAX_TOKENS > 4
        linear_int8<bits, 5, T, true, known>, linear_int8<bits, 6, T, true, known>,
        linear_int8<bits, 7, T, true, known>, linear_int8<bits, 8, T, true, known>,
#endif
    };
    static_assert(sizeof table / sizeof *table == max_tokens, "one function for every batch size");
    return table[count - 1];
}

template <int bits, int T>
StreamFunction pick_int8(const Matrix &m, int count) {
#if EDGE_MAX_TOKENS > 4
    if (T > 1 && count > together_tokens && m.block <= pad_columns) {
        return count == 7 ? linear_int8<bits, 7, T, false, 0> : linear_int8<bits, 8, T, false, 0>;
    }
#endif
    if (in_shorts<bits> && m.group == known_group) {
        return pick_together<bits, T, in_shorts<bits> ? known_group : 0>(count);
    }
    return pick_together<bits, T, 0>(count);
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
void linear_quantized(const Matrix &m, int64_t tile, int tiles, int64_t distance, const Activations &a,
                      int64_t token, int count, float *out) {
    const int64_t out_stride = int64_t(count) * linear_lanes;
    if (count > direct_tokens) {
        for (int i = 0; i < tiles; i += block_tiles) {
            const int now = tiles - i < block_tiles ? tiles - i : block_tiles;
            linear_block<bits>(m, tile + i * distance, now, distance, a, token, count, out + i * out_stride);
        }
        return;
    }
    for (int done = 0; done < count; done += int(a.batch)) {
        const int now = count - done < a.batch ? count - done : int(a.batch);
        float *const into = out + done * linear_lanes;
        if (tiles == 2 && now <= streamed_tokens) {
            pick_int8<bits, 2>(m, now)(m, m.tile(tile), distance, a, token + done, into, out_stride);
            continue;
        }
        const StreamFunction run = pick_int8<bits, 1>(m, now);
        for (int i = 0; i < tiles; ++i) {
            run(m, m.tile(tile + i * distance), 0, a, token + done, into + i * out_stride, out_stride);
        }
    }
}

void linear(const Matrix &m, int64_t tile, int tiles, int64_t distance, const Activations &a, int64_t token,
            int count, float *out) {
    if (m.kind != EDGE_F16 && a.codes != nullptr) {
        const auto run = m.kind == EDGE_INT4   ? linear_quantized<4>
                         : m.kind == EDGE_INT8 ? linear_quantized<8>
                                               : linear_quantized<2>;
        run(m, tile, tiles, distance, a, token, count, out);
        return;
    }
    for (int i = 0; i < tiles; ++i) {
        for (int done = 0; done < count; done += max_exact_tokens) {
            const int now = count - done < max_exact_tokens ? count - done : max_exact_tokens;
            const LinearFunction run = m.kind == EDGE_F16    ? pick_half(now)
                                       : m.kind == EDGE_INT4 ? pick_exact<4>(now)
                                       : m.kind == EDGE_INT8 ? pick_exact<8>(now)
                                                             : pick_exact<2>(now);
            run(m, m.tile(tile + i * distance), a, token + done, out + (i * count + done) * linear_lanes);
        }
    }
}
