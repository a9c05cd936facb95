// Integer products for many tokens: weights of a few tiles are unpacked into the L1 cache once, then used by one
// batch of tokens after the other. Part of tier.h.

constexpr int unpack_columns = 512;  // with a batch's activations they fit into 48 KB for two tiles

// A range of columns of one tile: codes as bytes, 128 for every 8 columns; scales per activation block.
struct Unpacked {
    alignas(64) uint8_t codes[tile_rows * unpack_columns];
    alignas(64) float scales[tile_rows * unpack_columns / pad_columns];
    alignas(64) float minimums[tile_rows * unpack_columns / pad_columns];
};

template <int bits>
void unpack(const Matrix &m, const uint8_t *tile, int64_t first, int64_t last, Unpacked *out) {
    constexpr int field_count = 8 / bits;
    uint8_t *codes = out->codes;
    float *scales = out->scales, *minimums = out->minimums;
    for (int64_t column = first; column < last; column += m.block) {
        const int64_t stop = column + m.block < last ? column + m.block : last;
        const int64_t start = column / m.group * m.group;
        const int64_t group = m.padded - start < m.group ? m.padded - start : m.group;
        const uint8_t *at = tile + column / m.group * m.group_bytes + (column - start) * 2 * bits;
        for (int64_t c = column; c < stop; c += 8 * field_count, at += 128) {
            prefetch(at + prefetch_distance);
            prefetch(at + prefetch_distance + 64);
            const Bytes bytes[2] = {load_bytes(at), load_bytes(at + 64)};
#pragma GCC unroll 4
            for (int i = 0; i < 2 * field_count; i += 2, codes += 128) {
                store_words(codes, fields<bits>(bytes[i / field_count], i % field_count),
                            fields<bits>(bytes[(i + 1) / field_count], (i + 1) % field_count));
            }
        }
        const uint8_t *tail = tile + column / m.group * m.group_bytes + group * 2 * bits;
        store(scales, load_half(reinterpret_cast<const uint16_t *>(tail)));
        scales += tile_rows;
        if (m.minimum) {
            store(minimums, load_half(reinterpret_cast<const uint16_t *>(tail) + tile_rows));
            minimums += tile_rows;
        }
    }
}

#if !defined(EDGE_PAIRED_SUMS)
inline void store_words(uint8_t *p, Bytes first, Bytes second) {
    store_bytes(p, first);
    store_bytes(p + 64, second);
}

// The integer sums of one tile and M tokens. `begin` and `end` stand around at most piece_columns columns.
template <bool biased, int M>
struct Sums {
    static constexpr bool shorts = has_short_sums && !biased;
    Ints sum[M];
    Shorts part[shorts ? M : 1];

    void start(const int32_t *corrections) {
#pragma GCC unroll 8
        for (int t = 0; t < M; ++t) sum[t] = set_int(corrections[t]);
    }
    void begin() {
#pragma GCC unroll 8
        for (int t = 0; shorts && t < M; ++t) part[t] = no_shorts();
    }
    void add_word(int t, Bytes w, Word x) {
        if constexpr (biased) {
            sum[t] = dot_biased(sum[t], w, x);
        } else if constexpr (shorts) {
            part[t] = dot_small(part[t], w, x);
        } else {
            sum[t] = dot_small(sum[t], w, x);
        }
    }
    void end() {
#pragma GCC unroll 8
        for (int t = 0; shorts && t < M; ++t) sum[t] = add(sum[t], part[t]);
    }
    Ints of(int token) const { return sum[token]; }
};

// Adds 8 columns of the tiles that lie `stride` bytes apart times the codes of M tokens.
template <bool biased, int M, int tiles>
__attribute__((always_inline)) inline void add_products(Sums<biased, M> (&sums)[tiles], const uint8_t *at,
                                                        int64_t stride, const int8_t *codes) {
#pragma GCC unroll 2
    for (int word = 0; word < 2; ++word) {
        Bytes w[tiles];
#pragma GCC unroll 2
        for (int i = 0; i < tiles; ++i) w[i] = load_bytes(at + i * stride + 64 * word);
#pragma GCC unroll 8
        for (int t = 0; t < M; ++t, codes += 4) {
            const Word x = load_word(codes);
#pragma GCC unroll 2
            for (int i = 0; i < tiles; ++i) sums[i].add_word(t, w[i], x);
        }
    }
}
#endif

// Columns [first, last) of `tiles` unpacked tiles times a batch of M tokens, added to out[tile][token]; tile i of
// `out` starts at i * out_stride. The same arithmetic in the same order as linear_int8, and the same `known`.
template <bool biased, int tiles, int known, int M>
void multiply_unpacked(const Matrix &m, const Unpacked *weights, int64_t first, int64_t last,
                       const Activations &a, int64_t token, float *out, int64_t out_stride) {
    const int64_t block = known ? known : m.block;
    const int64_t entry = token * a.blocks + first / block * M;
    const int8_t *codes = a.codes + token * a.stride + first * M;
    const float *scales = a.scales + entry, *offsets = a.offsets + entry, *sums = a.sums + entry;
    const int32_t *corrections = a.corrections + entry;
    const uint8_t *at = weights->codes;
    Floats total[tiles][M];
#pragma GCC unroll 2
    for (int i = 0; i < tiles; ++i) {
#pragma GCC unroll 8
        for (int t = 0; t < M; ++t) total[i][t] = load(out + i * out_stride + t * linear_lanes);
    }
    for (int64_t column = first, entries = 0; column < last; column += block, entries += tile_rows) {
        const int64_t stop = known || column + block < last ? column + block : last;
        Sums<biased, M> sums_of[tiles];
#pragma GCC unroll 2
        for (int i = 0; i < tiles; ++i) sums_of[i].start(corrections);
        for (int64_t c = column; c < stop;) {
            const int64_t end = has_short_sums && c + piece_columns < stop ? c + piece_columns : stop;
#pragma GCC unroll 2
            for (int i = 0; i < tiles; ++i) sums_of[i].begin();
            for (; c < end; c += 8, at += 128, codes += 8 * M) {
                add_products(sums_of, at, sizeof(Unpacked), codes);
            }
#pragma GCC unroll 2
            for (int i = 0; i < tiles; ++i) sums_of[i].end();
        }
#pragma GCC unroll 2
        for (int i = 0; i < tiles; ++i) {
            const Floats scale = load(weights[i].scales + entries);
#pragma GCC unroll 8
            for (int t = 0; t < M; ++t) {
                const Floats x = scaled(sums_of[i].of(t), set(scales[t]), set(offsets[t]));
                total[i][t] = fma(x, scale, total[i][t]);
            }
            if (m.minimum) {
                const Floats minimum = load(weights[i].minimums + entries);
#pragma GCC unroll 8
                for (int t = 0; t < M; ++t) total[i][t] = fma(minimum, set(sums[t]), total[i][t]);
            }
        }
        scales += M;
        offsets += M;
        sums += M;
        corrections += M;
    }
#pragma GCC unroll 2
    for (int i = 0; i < tiles; ++i) {
#pragma GCC unroll 8
        for (int t = 0; t < M; ++t) store(out + i * out_stride + t * linear_lanes, total[i][t]);
    }
}

using MultiplyFunction = void (*)(const Matrix &, const Unpacked *, int64_t, int64_t, const Activations &,
                                  int64_t, float *, int64_t);

template <bool biased, int tiles, int known>
MultiplyFunction pick_multiply(int count) {
    static const MultiplyFunction table[] = {
        multiply_unpacked<biased, tiles, known, 1>, multiply_unpacked<biased, tiles, known, 2>,
        multiply_unpacked<biased, tiles, known, 3>, multiply_unpacked<biased, tiles, known, 4>,
#if EDGE_BLOCK_TOKENS > 4
        multiply_unpacked<biased, tiles, known, 5>, multiply_unpacked<biased, tiles, known, 6>,
#endif
    };
    static_assert(sizeof table / sizeof *table == block_tokens, "one function for every batch size");
    return table[count - 1];
}

// out[tiles][count][16] for `count` tokens in several batches; at most block_tiles tiles, `distance` apart.
template <int bits>
void linear_block(const Matrix &m, int64_t tile, int tiles, int64_t distance, const Activations &a,
                  int64_t token, int count, float *out) {
    constexpr bool biased = bits == 8 && biased_offset != 0;
    Unpacked unpacked[block_tiles];
    const int64_t step = unpack_columns / m.block * m.block;
    const int64_t out_stride = int64_t(count) * linear_lanes;
    for (int64_t i = 0; i < tiles * out_stride; i += linear_lanes) store(out + i, zero());
    for (int64_t first = 0; first < m.padded; first += step) {
        const int64_t last = first + step < m.padded ? first + step : m.padded;
        for (int i = 0; i < tiles; ++i) {
            unpack<bits>(m, m.tile(tile + i * distance), first, last, &unpacked[i]);
        }
        const int64_t lines = (last - first) * tiles * m.tile_bytes / m.padded / 64,
                      share = lines * a.batch / count;
        const uint8_t *next = m.tile(tile + tiles) + first * tiles * m.tile_bytes / m.padded;
        for (int done = 0; done < count; done += int(a.batch)) {
            for (int64_t i = 0; i <= share; ++i, next += 64) __builtin_prefetch(next, 0, 2);
            const int now = count - done < a.batch ? count - done : int(a.batch);
            const MultiplyFunction run = tiles > 1 ? pick_multiply<biased, block_tiles, 0>(now)
                                         : in_shorts<bits> && m.group == known_group
                                             ? pick_multiply<biased, 1, known_group>(now)
                                             : pick_multiply<biased, 1, 0>(now);
            run(m, unpacked, first, last, a, token + done, out + done * linear_lanes, out_stride);
        }
    }
}
