// Attention over a cache of integers: scores and weighted sums as dot products of 16-bit codes. Part of tier.h.

// How codes are multiplied: so many of a lane at once, for tiles of so many rows and vectors.
template <class Code>
struct Products;

template <>
struct Products<int16_t> {
    static constexpr int codes = 2, rows = pair_rows, vectors = pair_vectors;
    using Sums = PairSums;
    static Sums none() { return no_pairs(); }
    static Bytes lanes(const int16_t *p) { return load_pairs(p); }
    static Word row(const int16_t *p) { return load_word(reinterpret_cast<const int8_t *>(p)); }
    static Sums add(Sums sums, Bytes lanes, Word row) { return dot_pairs(sums, lanes, row); }
};

template <>
struct Products<int8_t> {
    static constexpr int codes = 4, rows = four_rows, vectors = 1;
    using Sums = FourSums;
    static Sums none() { return no_fours(); }
    static Fours lanes(const int8_t *p) { return load_fours(p); }
    static FourWord row(const int16_t *p) { return load_four_word(p); }
    static Sums add(Sums sums, Fours lanes, FourWord row) { return dot_fours(sums, lanes, row); }
};

// `count` times the products of R rows with 16 V lanes; a row's codes stand `row_step` from the next row's and `step`
// from its own next ones, those of the lanes `vector_step` and `lane_step`.
template <int R, int V, class Code>
inline void multiply(typename Products<Code>::Sums (&sums)[R][V], const int16_t *rows, int64_t row_step,
                     int64_t step, const Code *lanes, int64_t vector_step, int64_t lane_step, int64_t count,
                     Ahead *ahead) {
    using P = Products<Code>;
    Ahead next = *ahead;
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) sums[r][v] = P::none();
    }
    for (int64_t i = 0; i < count; ++i, rows += step, lanes += lane_step) {
        decltype(P::lanes(lanes)) codes[V];
        for (int v = 0; v < V; ++v) {
            codes[v] = P::lanes(lanes + v * vector_step);
            next.fetch();
        }
        for (int r = 0; r < R; ++r) {
            const auto row = P::row(rows + r * row_step);
            for (int v = 0; v < V; ++v) sums[r][v] = P::add(sums[r][v], codes[v], row);
        }
    }
    *ahead = next;
}

// Some consecutive rows, few enough that their scores stay in the first-level cache.
struct RowRange {
    int first, last;
};
constexpr int range_rows = 16;

// The codes of a block as they are multiplied: of 4 bits they are unpacked, and `following` is fetched meanwhile.
template <class Code>
inline const Code *codes_of(const AttentionRows &rows, const uint8_t *block, const uint8_t **following) {
    if (sizeof(Code) != 1 || rows.type != EDGE_KV_INT4) return reinterpret_cast<const Code *>(block);
    int8_t *codes = reinterpret_cast<int8_t *>(rows.scratch.tile);
    unpack(block, attention_block * rows.head_dim, codes, *following);
    *following = reinterpret_cast<const uint8_t *>(codes);  // in the nearest cache: nothing more to fetch
    return reinterpret_cast<const Code *>(codes);
}

// Scores of the rows with `positions` keys of a block.
template <class Code>
inline void score_block_codes(const AttentionRows &rows, RowRange range, const uint8_t *block,
                              int64_t positions, float *scores, const uint8_t *following) {
    const int64_t dim = rows.head_dim;
    using P = Products<Code>;
    const Code *keys = codes_of<Code>(rows, block, &following);
    for_row_tiles<P::rows>(range.first, range.last, [&](auto size, int row) {
        constexpr int R = size.value;
        const int16_t *queries = rows.scratch.query_codes + row * dim;
        Ahead ahead(following, row, queries);
        for_column_tiles<P::vectors>((positions + 15) / 16 * 16, [&](auto vectors, int64_t p) {
            constexpr int V = vectors.value;
            typename P::Sums sums[R][V];
            multiply<R, V, Code>(sums, queries, P::codes, P::codes * R, keys + p * dim, 16 * dim,
                                 16 * P::codes, dim / P::codes, &ahead);
            for (int v = 0; v < V; ++v) {
                const Floats scales = load(block_scales(rows.type, rows.head_dim, block) + p + 16 * v);
                for (int r = 0; r < R; ++r) {
                    const Floats scale = mul(scales, set(rows.scratch.query_scales[row + r]));
                    store(scores + (row + r) * attention_chunk + p + 16 * v,
                          mul(to_float(whole(sums[r][v])), scale));
                }
            }
        });
    });
}

// Powers of two of a row's scores, or 0 where it does not see; they are summed, and stored times the values' scales.
// block_sums[b]: of what is stored for block b.
inline float weights_of_row(const AttentionRows &rows, const AttentionChunk &c, int row, const bool *all_seen,
                            float maximum, float *block_sums) {
    static_assert(attention_blocks == 4 && chains == 4, "sums of four");
    const Floats shift = set(maximum == -INFINITY ? 0.0f : maximum);
    Floats total[chains], block_total[attention_blocks];
    for (int k = 0; k < chains; ++k) total[k] = block_total[k] = zero();
    for (int b = 0; b < c.blocks; ++b) {
        float *part = rows.scratch.scores + row * attention_chunk + b * attention_block;
        const float *scales = block_scales(rows.type, rows.head_dim, c.values[b]);
        Floats weights[chains];
        for (int k = 0; k < chains; ++k) weights[k] = exponential2(sub(load(part + 16 * k), shift));
        const auto hide_weights = [&] {
            for (int k = 0; k < chains; ++k) store(part + 16 * k, weights[k]);
            hide(rows, row, c.starts[b], 0.0f, part);
            for (int k = 0; k < chains; ++k) weights[k] = load(part + 16 * k);
        };
        if (!all_seen[b]) hide_weights();  // the clamped power of -infinity is tiny, not zero
        for (int k = 0; k < chains; ++k) {
            total[k] = add(total[k], weights[k]);
            weights[k] = mul(weights[k], load(scales + 16 * k));
        }
        if (!all_seen[b]) hide_weights();  // a scale that nobody has written may be anything
        for (int k = 0; k < chains; ++k) store(part + 16 * k, weights[k]);
        block_total[b] = add(add(weights[0], weights[1]), add(weights[2], weights[3]));
    }
    sums_of_four(block_total, block_sums);
    return reduce_add(total);
}

// Turns the scores of the rows into codes of weights, with a scale per row and block. In steps over all rows: the
// reductions of one would wait for each other.
inline void soften_to_codes(const AttentionRows &rows, RowRange range, const AttentionChunk &c, float *maxima,
                            float *sums) {
    bool all_seen[range_rows][attention_blocks];
    for (int row = range.first; row < range.last; ++row) {
        maxima[row] = hide_unseen(rows, c, row, all_seen[row - range.first]);
    }
    float totals[range_rows][attention_blocks], factors[range_rows][attention_blocks];
    for (int row = range.first; row < range.last; ++row) {
        const int r = row - range.first;
        sums[row] = weights_of_row(rows, c, row, all_seen[r], maxima[row], totals[r]);
    }
    for (int r = 0; r < range.last - range.first; ++r) {
        for (int b = 0; b < attention_blocks; ++b) {
            const float total = totals[r][b], inverse = total_weight / total;
            // Not for zero, nor where 1 / total overflows: such a block is as good as zero. NaN stays.
            const bool unusable = total == 0.0f || inverse > 3.0e38f;
            factors[r][b] = unusable ? 0.0f : inverse;
            rows.scratch.weight_scales[(range.first + r) * attention_blocks + b] =
                unusable ? 0.0f : total * (1.0f / total_weight);
        }
    }
    for (int row = range.first; row < range.last; ++row) {
        const float *weights = rows.scratch.scores + row * attention_chunk;
        int16_t *codes = rows.scratch.weight_codes + row * attention_chunk;
        for (int b = 0; b < c.blocks; ++b) {
            const Floats factor = set(factors[row - range.first][b]);
            for (int i = b * attention_block; i < (b + 1) * attention_block; i += 32) {
                store_int16(codes + i, mul(load(weights + i), factor), mul(load(weights + i + 16), factor));
            }
        }
    }
}

// outputs of the rows: the weighted sums of the values of all blocks.
template <class Code>
inline void weigh_codes(const AttentionRows &rows, RowRange range, const AttentionChunk &c,
                        const int64_t *seen, float *outputs) {
    using P = Products<Code>;
    const int64_t dim = rows.head_dim;
    const AttentionScratch &s = rows.scratch;
    memset(outputs + range.first * dim, 0, uint64_t((range.last - range.first) * dim) * sizeof(float));
    for (int b = 0; b < c.blocks; ++b) {
        const uint8_t *following = c.next[b];
        const Code *values = codes_of<Code>(rows, c.values[b], &following);
        for_row_tiles<P::rows>(range.first, range.last, [&](auto size, int row) {
            constexpr int R = size.value;
            const int16_t *weights = s.weight_codes + row * attention_chunk + b * attention_block;
            Ahead ahead(following, row, weights);
            for_column_tiles<P::vectors>(dim, [&](auto vectors, int64_t column) {
                constexpr int V = vectors.value;
                typename P::Sums sums[R][V];
                multiply<R, V, Code>(sums, weights, attention_chunk, P::codes, values + P::codes * column,
                                     16 * P::codes, P::codes * dim, (seen[b] + P::codes - 1) / P::codes,
                                     &ahead);
                for (int r = 0; r < R; ++r) {
                    const Floats scale = set(s.weight_scales[(row + r) * attention_blocks + b]);
                    float *out = outputs + (row + r) * dim + column;
                    for (int v = 0; v < V; ++v) {
                        store(out + 16 * v, fma(to_float(whole(sums[r][v])), scale, load(out + 16 * v)));
                    }
                }
            });
        });
    }
}

// Queries as codes, as many side by side as are multiplied at once; load_query(row) leaves a row in `query`.
template <class Code, class Load>
inline void prepare_codes(const AttentionRows &rows, const float *query, const Load &load_query) {
    using P = Products<Code>;
    const int64_t dim = rows.head_dim;
    for_row_tiles<P::rows>(0, rows.count, [&](auto size, int first) {
        for (int r = 0; r < size.value; ++r) {
            load_query(first + r);
            int16_t codes[max_head_dim], *to = rows.scratch.query_codes + first * dim + P::codes * r;
            rows.scratch.query_scales[first + r] = quantize_key(query, dim, codes);
            for (int64_t d = 0; d < dim; d += P::codes, to += P::codes * size.value) {
                memcpy(to, codes + d, P::codes * sizeof *codes);
            }
        }
    });
}

template <class Code>
inline void attend_codes(const AttentionRows &rows, const AttentionChunk &c, const int64_t *seen,
                         const AttentionState &out) {
    for (int first = 0; first < rows.count; first += range_rows) {
        const RowRange range{first, first + range_rows < rows.count ? first + range_rows : rows.count};
        for (int b = 0; b < c.blocks; ++b) {
            const uint8_t *const wanted[] = {c.values[b], c.next[b]};
            for (const uint8_t *block : wanted) {
                const float *scales = block_scales(rows.type, rows.head_dim, block);
                for (int64_t p = 0; p < attention_block; p += 16) {
                    prefetch_far(reinterpret_cast<const uint8_t *>(scales + p));
                }
            }
            float *scores = rows.scratch.scores + b * attention_block;
            score_block_codes<Code>(rows, range, c.keys[b], seen[b], scores, c.values[b]);
        }
        soften_to_codes(rows, range, c, out.maxima, out.sums);
        weigh_codes<Code>(rows, range, c, seen, out.outputs);
    }
}
