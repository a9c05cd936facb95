// Attention of query rows to one chunk of the KV cache, and merging the parts. Part of tier.h.
//
// Every sum of a row runs over the elements, or the positions, in ascending order in one accumulator per lane.
// So the tiles below can have any size, and a row may be computed alone or beside others: the bits are the same.

// Scores of R rows at 16 V positions: queries[d][R], keys[v][d][16].
template <int R, int V, class Key>
inline void score(const float *queries, int64_t dim, const Key *keys, float *scores, Ahead *ahead) {
    Ahead next = *ahead;
    Floats sums[R][V];
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) sums[r][v] = zero();
    }
    for (int64_t d = 0; d < dim; ++d, queries += R) {
        Floats key[V];
        for (int v = 0; v < V; ++v) key[v] = load(keys + (v * dim + d) * 16);
        next.fetch();
        for (int r = 0; r < R; ++r) {
            const Floats query = set(queries[r]);
            for (int v = 0; v < V; ++v) sums[r][v] = fma(query, key[v], sums[r][v]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) store(scores + r * attention_chunk + 16 * v, sums[r][v]);
    }
    *ahead = next;
}

// Adds the weighted sums of `positions` values, `stride` apart, to outputs of R rows, 16 V columns.
template <int R, int V, class Value>
inline void weigh(const float *weights, const Value *values, int64_t stride, int64_t positions, int64_t dim,
                  float *outputs, Ahead *ahead) {
    Ahead next = *ahead;
    Floats sums[R][V];
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) sums[r][v] = load(outputs + r * dim + 16 * v);
    }
    for (int64_t i = 0; i < positions; ++i) {
        Floats value[V];
        for (int v = 0; v < V; ++v) value[v] = load(values + i * stride + 16 * v);
        next.fetch();
        for (int r = 0; r < R; ++r) {
            const Floats weight = set(weights[r * attention_chunk + i]);
            for (int v = 0; v < V; ++v) sums[r][v] = fma(weight, value[v], sums[r][v]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) store(outputs + r * dim + 16 * v, sums[r][v]);
    }
    *ahead = next;
}

template <class Key>
inline void score_block(const AttentionRows &rows, const Key *keys, int64_t positions, float *scores,
                        const uint8_t *following) {
    const int64_t dim = rows.head_dim;
    for_row_tiles<score_rows>(0, rows.count, [&](auto size, int row) {
        const float *queries = rows.scratch.queries + row * dim;
        Ahead ahead(following, row, queries);
        for_column_tiles<score_vectors>((positions + 15) / 16 * 16, [&](auto vectors, int64_t p) {
            score<size.value, vectors.value>(queries, dim, keys + p * dim, scores + row * attention_chunk + p,
                                             &ahead);
        });
    });
}

// One tile of rows takes halves as they are; for more of them they are converted first.
inline void score_keys(const AttentionRows &rows, const uint8_t *block, int64_t positions, float *scores,
                       const uint8_t *following) {
    if (rows.type == EDGE_KV_F32) {
        return score_block(rows, reinterpret_cast<const float *>(block), positions, scores, following);
    }
    const uint16_t *halves = reinterpret_cast<const uint16_t *>(block);
    if (rows.count <= score_rows) return score_block(rows, halves, positions, scores, following);
    float *tile = rows.scratch.tile;
    const int64_t count = (positions + 15) / 16 * 16 * rows.head_dim;
    for (int64_t i = 0; i < count; i += 16) store(tile + i, load(halves + i));
    score_block(rows, static_cast<const float *>(tile), positions, scores, following);
}

// Few rows read the values of one block after the other, where they lie.
template <class Value>
inline void weigh_blocks(const AttentionRows &rows, const AttentionChunk &c, const int64_t *seen,
                         float *outputs) {
    const int64_t dim = rows.head_dim;
    for (int b = 0; b < c.blocks; ++b) {
        const Value *values = reinterpret_cast<const Value *>(c.values[b]);
        const uint8_t *following = c.next[b];
        for_row_tiles<value_rows>(0, rows.count, [&](auto size, int row) {
            const float *weights = rows.scratch.scores + row * attention_chunk + b * attention_block;
            Ahead ahead(following, row, weights);
            for_column_tiles<value_vectors>(dim, [&](auto vectors, int64_t column) {
                weigh<size.value, vectors.value>(weights, values + column, dim, seen[b], dim,
                                                 outputs + row * dim + column, &ahead);
            });
        });
    }
}

// Many rows share the values of the whole chunk, converted and packed by tiles of columns.
template <class Value>
inline void weigh_chunk(const AttentionRows &rows, const AttentionChunk &c, const int64_t *seen,
                        float *outputs) {
    const int64_t dim = rows.head_dim, positions = (c.blocks - 1) * attention_block + seen[c.blocks - 1];
    float *tile = rows.scratch.tile;
    for_column_tiles<value_vectors>(dim, [&](auto vectors, int64_t column) {
        constexpr int V = vectors.value;
        for (int b = 0; b < c.blocks; ++b) {
            const Value *values = reinterpret_cast<const Value *>(c.values[b]) + column;
            float *to = tile + b * attention_block * 16 * V;
            for (int64_t i = 0; i < attention_block; ++i, to += 16 * V) {
                for (int v = 0; v < V; ++v) {
                    store(to + 16 * v, i < seen[b] ? load(values + i * dim + 16 * v) : zero());
                }
            }
        }
        for_row_tiles<value_rows>(0, rows.count, [&](auto size, int row) {
            const float *weights = rows.scratch.scores + row * attention_chunk;
            Ahead ahead(c.next[0], row + 1, weights);  // nothing
            weigh<size.value, V>(weights, tile, 16 * V, positions, dim, outputs + row * dim + column, &ahead);
        });
    });
}

template <class Value>
inline void weigh_values(const AttentionRows &rows, const AttentionChunk &c, const int64_t *seen,
                         float *outputs) {
    memset(outputs, 0, uint64_t(rows.count * rows.head_dim) * sizeof(float));
    if (rows.count <= value_rows) return weigh_blocks<Value>(rows, c, seen, outputs);
    weigh_chunk<Value>(rows, c, seen, outputs);
}

// Turns a row's scores into weights 2^(score - maximum), or 0 where the row does not see.
inline void soften(const AttentionRows &rows, const AttentionChunk &c, int row, float *maximum, float *sum) {
    bool all_seen[attention_blocks];
    *maximum = hide_unseen(rows, c, row, all_seen);
    const Floats shift = set(*maximum == -INFINITY ? 0.0f : *maximum);
    Floats total[chains];
    for (int k = 0; k < chains; ++k) total[k] = zero();
    for (int b = 0; b < c.blocks; ++b) {
        float *part = rows.scratch.scores + row * attention_chunk + b * attention_block;
        for (int k = 0; k < chains; ++k) {
            store(part + 16 * k, exponential2(sub(load(part + 16 * k), shift)));
        }
        // The clamped power of -infinity is tiny, not zero.
        if (!all_seen[b]) hide(rows, row, c.starts[b], 0.0f, part);
        for (int k = 0; k < chains; ++k) total[k] = add(total[k], load(part + 16 * k));
    }
    *sum = reduce_add(total);
}

// A tile walks along one pointer: the first element of each of its rows, then the next.
void prepare_queries(const AttentionRows &rows) {
    const AttentionScratch &s = rows.scratch;
    const int64_t dim = rows.head_dim;
    const Floats scale = set(rows.scale * 1.44269504f);  // scores in powers of two
    float *query = s.tile;
    const auto load_query = [&](int row) {
        for (int64_t d = 0; d < dim; d += 16) store(query + d, mul(load(rows.queries[row] + d), scale));
        if (rows.type == EDGE_KV_INT4) rotate(query, dim);
    };
    if (!has_scales(rows.type)) {
        for_row_tiles<score_rows>(0, rows.count, [&](auto size, int first) {
            for (int r = 0; r < size.value; ++r) {
                load_query(first + r);
                float *to = s.queries + first * dim + r;
                for (int64_t d = 0; d < dim; ++d) to[d * size.value] = query[d];
            }
        });
        return;
    }
    if (rows.type == EDGE_KV_INT16) return prepare_codes<int16_t>(rows, query, load_query);
    prepare_codes<int8_t>(rows, query, load_query);
}

// All in one: otherwise GCC keeps the sums of the tiles in memory where a vector of lanes is several registers (NEON).
__attribute__((flatten)) void attend(const AttentionRows &rows, const AttentionChunk &c,
                                     const AttentionState &out) {
    int64_t furthest = 0, seen[attention_blocks];
    for (int r = 0; r < rows.count; ++r) furthest = rows.limits[r] > furthest ? rows.limits[r] : furthest;
    for (int b = 0; b < c.blocks; ++b) {
        const int64_t positions = furthest - c.starts[b];
        seen[b] = positions < 0 ? 0 : positions < attention_block ? positions : attention_block;
    }
    if (rows.type == EDGE_KV_INT16) return attend_codes<int16_t>(rows, c, seen, out);
    if (has_scales(rows.type)) return attend_codes<int8_t>(rows, c, seen, out);
    for (int b = 0; b < c.blocks; ++b) {
        score_keys(rows, c.keys[b], seen[b], rows.scratch.scores + b * attention_block, c.values[b]);
    }
    for (int r = 0; r < rows.count; ++r) soften(rows, c, r, out.maxima + r, out.sums + r);
    if (rows.type == EDGE_KV_F16) return weigh_values<uint16_t>(rows, c, seen, out.outputs);
    weigh_values<float>(rows, c, seen, out.outputs);
}

void merge(const AttentionState &part, int rows, int64_t head_dim, const AttentionState &into) {
    for (int r = 0; r < rows; ++r) {
        if (part.maxima[r] == -INFINITY) continue;
        const float highest = part.maxima[r] > into.maxima[r] ? part.maxima[r] : into.maxima[r];
        float factors[16];
        store(factors, exponential2(set(into.maxima[r] - highest)));
        const float old_factor = into.maxima[r] == -INFINITY ? 0.0f : factors[0];
        store(factors, exponential2(set(part.maxima[r] - highest)));
        const float new_factor = factors[0];
        into.maxima[r] = highest;
        into.sums[r] = into.sums[r] * old_factor + part.sums[r] * new_factor;
        float *outputs = into.outputs + r * head_dim;
        for (int64_t d = 0; d < head_dim; d += 16) {
            const Floats fresh = mul(load(part.outputs + r * head_dim + d), set(new_factor));
            store(outputs + d, fma(load(outputs + d), set(old_factor), fresh));
        }
    }
}
