// Attention over an int16 cache: scores and weighted sums as integer dot products. Part of tier.h.

// Adds the products of R rows with 16 V lanes of codes, pairs of them at a time; a row's pairs are `row_step` codes from
// the next row's and `step` from its own next ones, the lanes' pairs `lane_step` and `vector_step`.
template <int R, int V>
inline void add_pairs(PairSums (&sums)[R][V], const int16_t *rows, int64_t row_step, int64_t step,
                      const int16_t *lanes, int64_t vector_step, int64_t lane_step, int64_t pairs, Ahead *ahead) {
    Ahead next = *ahead;
    for (int64_t i = 0; i < pairs; ++i, rows += step, lanes += lane_step) {
        Bytes codes[V];
        for (int v = 0; v < V; ++v) {
            codes[v] = load_bytes(reinterpret_cast<const uint8_t *>(lanes + v * vector_step));
            next.fetch();
        }
        for (int r = 0; r < R; ++r) {
            const Word row = load_word(reinterpret_cast<const int8_t *>(rows + r * row_step));
            for (int v = 0; v < V; ++v) sums[r][v] = dot_pairs(sums[r][v], codes[v], row);
        }
    }
    *ahead = next;
}

template <int R, int V>
inline void clear(PairSums (&sums)[R][V]) {
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) sums[r][v] = no_pairs();
    }
}

// Scores of all rows with `positions` keys of a block.
inline void score_block_int16(const AttentionRows &rows, const uint8_t *block, int64_t positions, float *scores,
                              const uint8_t *following) {
    const int64_t dim = rows.head_dim;
    const int16_t *keys = reinterpret_cast<const int16_t *>(block);
    for_row_tiles<pair_rows>(0, rows.count, [&](auto size, int row) {
        constexpr int R = size.value;
        const int16_t *queries = reinterpret_cast<const int16_t *>(rows.scratch.query_digits) + row * dim;
        Ahead ahead(following, row, queries);
        for_column_tiles<pair_vectors>((positions + 15) / 16 * 16, [&](auto vectors, int64_t p) {
            constexpr int V = vectors.value;
            PairSums sums[R][V];
            clear(sums);
            add_pairs(sums, queries, 2, 2 * R, keys + p * dim, 16 * dim, 32, dim / 2, &ahead);
            for (int v = 0; v < V; ++v) {
                const Floats scales = load(block_scales(rows, block) + p + 16 * v);
                for (int r = 0; r < R; ++r) {
                    const Floats scale = mul(scales, set(rows.scratch.query_scales[row + r]));
                    store(scores + (row + r) * attention_chunk + p + 16 * v, mul(to_float(whole(sums[r][v])), scale));
                }
            }
        });
    });
}

// Turns a row's weights of one block into codes.
inline void weights_to_codes(const AttentionRows &rows, int row, int block, const Floats *weights) {
    constexpr int vectors = attention_block / 16;
    Floats sum = zero();
    for (int k = 0; k < vectors; ++k) sum = add(sum, weights[k]);
    const float total = reduce_add(sum), inverse = total_weight / total;
    const bool usable = total > 0.0f && inverse <= 3.0e38f;
    const Floats factor = set(usable ? inverse : 0.0f);
    int16_t *codes = reinterpret_cast<int16_t *>(rows.scratch.weight_digits) + row * attention_chunk +
                     block * attention_block;
    for (int k = 0; k < vectors; ++k) store_int16(codes + 16 * k, round_even(mul(weights[k], factor)));
    rows.scratch.weight_scales[row * attention_blocks + block] =
        total != total ? NAN : usable ? total / total_weight : 0.0f;
}

// outputs of all rows: the weighted sums of the values of all blocks.
inline void weigh_values_int16(const AttentionRows &rows, const AttentionChunk &c, const int64_t *seen,
                               float *outputs) {
    const int64_t dim = rows.head_dim;
    const AttentionScratch &s = rows.scratch;
    memset(outputs, 0, uint64_t(rows.count * dim) * sizeof(float));
    for (int b = 0; b < c.blocks; ++b) {
        const int16_t *values = reinterpret_cast<const int16_t *>(c.values[b]);
        for_row_tiles<pair_rows>(0, rows.count, [&](auto size, int row) {
            constexpr int R = size.value;
            const int16_t *weights = reinterpret_cast<const int16_t *>(s.weight_digits) + row * attention_chunk +
                                     b * attention_block;
            Ahead ahead(c.next[b], row, weights);
            for_column_tiles<pair_vectors>(dim, [&](auto vectors, int64_t column) {
                constexpr int V = vectors.value;
                PairSums sums[R][V];
                clear(sums);
                add_pairs(sums, weights, attention_chunk, 2, values + 2 * column, 32, 2 * dim, (seen[b] + 1) / 2,
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
