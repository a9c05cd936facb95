// Attention of query rows to one chunk of the KV cache, and merging the parts. Part of tier.h.
//
// Every sum of a row runs over the elements, or the positions, in ascending order in one accumulator per lane.
// So the tiles below can have any size, and a row may be computed alone or beside others: the bits are the same.

// Weights below 2^-64 of the largest are as good as zero; smaller ones would become slow denormals further on.
constexpr float lowest_power = -64.0f;

// 2^x with a relative error below 3e-7, x at least `lowest` (also for -infinity), NaN for NaN. Scores are in these
// units, which takes fewer steps than e^x.
inline Floats exponential2(Floats x, float lowest = lowest_power) {
    const Floats clamped = max(set(lowest), x);
    const Floats n = round_even(clamped);
    const Floats r = sub(clamped, n);
    Floats p = set(1.3264726899e-3f);
    p = fma(p, r, set(9.6715126606e-3f));
    p = fma(p, r, set(5.5507337442e-2f));
    p = fma(p, r, set(2.4022242085e-1f));
    p = fma(p, r, set(6.9314697760e-1f));
    p = fma(p, r, set(1.0f));
    return scale_by_power(p, n);
}

// ---- Tiles --------------------------------------------------------------------------------------------

template <int N>
struct Constant {
    static constexpr int value = N;
};

// Calls tile(rows as a constant, row) over `count` rows, R at a time and then the rest in halves.
template <int R, class Tile>
inline void for_row_tiles(int row, int count, const Tile &tile) {
    for (; row + R <= count; row += R) tile(Constant<R>(), row);
    if constexpr (R > 1) for_row_tiles<R / 2>(row, count, tile);
}

inline Floats load(const uint16_t *halves) { return load_half(halves); }

// Memory that is wanted next. The first tile of rows brings it near, a cache line per step; the others stand still.
// What is fetched is used half a chunk later: too much for the first-level cache.
struct Ahead {
    const uint8_t *at;
    int64_t step;

    // `hot`: any memory that is in use
    Ahead(const uint8_t *following, int row, const void *hot)
        : at(row == 0 ? following : static_cast<const uint8_t *>(hot)), step(row == 0 ? 64 : 0) {}

    void fetch() {
        prefetch_far(at);
        at += step;
    }
};

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

// The same at 16 positions of int8 keys.
template <int R>
inline void score_int8(const AttentionScratch &s, int row, int64_t dim, const uint8_t *keys,
                       Floats key_scales, float *scores, Ahead *ahead) {
    Ahead next = *ahead;
    Ints high[R], low[R];
    for (int r = 0; r < R; ++r) {
        high[r] = set_int(s.query_offsets[2 * (row + r)]);
        low[r] = set_int(s.query_offsets[2 * (row + r) + 1]);
    }
    const int8_t *digits = s.query_digits + 2 * row * dim;
    for (int64_t d = 0; d < dim; d += 4, digits += 8 * R) {
        const Bytes key = load_bytes(keys + 16 * d);
        next.fetch();
        for (int r = 0; r < R; ++r) {
            high[r] = dot_digits(high[r], key, digits + 8 * r);
            low[r] = dot_digits(low[r], key, digits + 8 * r + 4);
        }
    }
    for (int r = 0; r < R; ++r) {
        const Floats scale = mul(key_scales, set(s.query_scales[row + r]));
        store(scores + r * attention_chunk, mul(digits_to_float(high[r], low[r]), scale));
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

// outputs of R rows, 16 columns, over all blocks of int8 values.
template <int R>
inline void weigh_int8(const AttentionScratch &s, const AttentionChunk &c, const int64_t *seen, int row,
                       int64_t dim, int64_t column, float *outputs) {
    Ints high[R], low[R];
    for (int r = 0; r < R; ++r) {
        high[r] = set_int(s.weight_offsets[2 * (row + r)]);
        low[r] = set_int(s.weight_offsets[2 * (row + r) + 1]);
    }
    for (int b = 0; b < c.blocks; ++b) {
        const int8_t *digits = s.weight_digits + 2 * row * attention_chunk + b * attention_block;
        const uint8_t *values = c.values[b] + 4 * column;
        Ahead next(c.next[b] + attention_block * column, row, digits);
        for (int64_t i = 0; i < seen[b]; i += 4) {
            const Bytes value = load_bytes(values + i * dim);
            next.fetch();
            for (int r = 0; r < R; ++r) {
                high[r] = dot_digits(high[r], value, digits + 2 * r * attention_chunk + i);
                low[r] = dot_digits(low[r], value, digits + (2 * r + 1) * attention_chunk + i);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        const Floats scale = set(s.weight_scales[row + r]);
        store(outputs + (row + r) * dim + column, mul(digits_to_float(high[r], low[r]), scale));
    }
}

// ---- One chunk ----------------------------------------------------------------------------------------

inline const float *block_scales(const AttentionRows &rows, const uint8_t *block) {
    return reinterpret_cast<const float *>(block + attention_block * rows.head_dim);
}

// Calls tile(vectors as a constant, column) over `columns` columns, V vectors of 16 at a time, then one.
template <int V, class Tile>
inline void for_column_tiles(int64_t columns, const Tile &tile) {
    int64_t column = 0;
    for (; column + 16 * V <= columns; column += 16 * V) tile(Constant<V>(), column);
    for (; column < columns; column += 16) tile(Constant<1>(), column);
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

inline void score_block_int8(const AttentionRows &rows, const uint8_t *keys, int64_t positions, float *scores,
                             const uint8_t *following) {
    const int64_t dim = rows.head_dim;
    for_row_tiles<digit_rows>(0, rows.count, [&](auto size, int row) {
        Ahead ahead(following, row, rows.scratch.query_digits);
        for (int64_t p = 0; p < positions; p += 16) {
            const Floats scales = load(block_scales(rows, keys) + p);
            score_int8<size.value>(rows.scratch, row, dim, keys + p * dim, scales,
                                   scores + row * attention_chunk + p, &ahead);
        }
    });
}

// Sets what the row does not see of the 64 positions from `start` on.
inline void hide(const AttentionRows &rows, int row, int64_t start, float value, float *scores) {
    const int64_t limit = rows.limits[row] - start;
    if (limit < attention_block) {
        const Floats hidden = set(value);
        for (int64_t p = 0; p < attention_block; p += 16) {
            store(scores + p, select_below(p, limit, load(scores + p), hidden));
        }
    }
    if (rows.masks != nullptr && limit > 0) {
        for (int64_t i = rows.tree_start > start ? rows.tree_start - start : 0; i < attention_block; ++i) {
            const int64_t node = start + i - rows.tree_start;
            if (node >= 64 || !(rows.masks[row] >> node & 1)) scores[i] = value;
        }
    }
}

// Four chains of maxima and sums, so that none waits for the one before.
constexpr int chains = attention_block / 16;

inline float reduce_max(const Floats *x) { return reduce_max(max(max(x[0], x[1]), max(x[2], x[3]))); }
inline float reduce_add(const Floats *x) { return reduce_add(add(add(x[0], x[1]), add(x[2], x[3]))); }

// Turns a row's scores into weights 2^(score - maximum), or 0 where the row does not see. Weights of int8 values are
// multiplied by the values' scales and brought to digits.
inline void soften(const AttentionRows &rows, const AttentionChunk &c, int row, float *maximum, float *sum) {
    const AttentionScratch &s = rows.scratch;
    float *scores = s.scores + row * attention_chunk;
    bool all_seen[attention_blocks];
    Floats largest[chains], total[chains], peak[chains];
    for (int k = 0; k < chains; ++k) {
        largest[k] = set(-INFINITY);
        total[k] = peak[k] = zero();
    }
    for (int b = 0; b < c.blocks; ++b) {
        const int64_t end = c.starts[b] + attention_block;
        float *part = scores + b * attention_block;
        all_seen[b] = end <= rows.limits[row] && (rows.masks == nullptr || end <= rows.tree_start);
        if (!all_seen[b]) hide(rows, row, c.starts[b], -INFINITY, part);
        for (int k = 0; k < chains; ++k) largest[k] = max(largest[k], load(part + 16 * k));
    }
    *maximum = reduce_max(largest);
    const Floats shift = set(*maximum == -INFINITY ? 0.0f : *maximum);
    for (int b = 0; b < c.blocks; ++b) {
        float *part = scores + b * attention_block;
        for (int k = 0; k < chains; ++k) {
            store(part + 16 * k, exponential2(sub(load(part + 16 * k), shift)));
        }
        // The clamped power of -infinity is tiny, not zero.
        if (!all_seen[b]) hide(rows, row, c.starts[b], 0.0f, part);
        for (int k = 0; k < chains; ++k) total[k] = add(total[k], load(part + 16 * k));
        if (rows.type != EDGE_KV_INT8) continue;
        const float *scales = block_scales(rows, c.values[b]);
        for (int k = 0; k < chains; ++k) {
            store(part + 16 * k, mul(load(part + 16 * k), load(scales + 16 * k)));
        }
        if (!all_seen[b]) hide(rows, row, c.starts[b], 0.0f, part);  // such a row's scale may be anything
        for (int k = 0; k < chains; ++k) peak[k] = max(peak[k], load(part + 16 * k));
    }
    *sum = reduce_add(total);
    if (rows.type != EDGE_KV_INT8) return;
    int8_t *digits = s.weight_digits + 2 * row * attention_chunk;
    s.weight_scales[row] = to_digits(scores, c.blocks * attention_block, reduce_max(peak), digits,
                                     digits + attention_chunk, s.weight_offsets + 2 * row);
}

// A tile walks along one pointer: the first element of each of its rows, then the next. Digits go in fours.
void prepare_queries(const AttentionRows &rows) {
    const AttentionScratch &s = rows.scratch;
    const int64_t dim = rows.head_dim;
    const Floats scale = set(rows.scale * 1.44269504f);  // scores in powers of two
    float *query = s.tile;
    const auto load_query = [&](int row) {
        for (int64_t d = 0; d < dim; d += 16) store(query + d, mul(load(rows.queries[row] + d), scale));
    };
    if (rows.type != EDGE_KV_INT8) {
        for_row_tiles<score_rows>(0, rows.count, [&](auto size, int first) {
            for (int r = 0; r < size.value; ++r) {
                load_query(first + r);
                float *to = s.queries + first * dim + r;
                for (int64_t d = 0; d < dim; ++d) to[d * size.value] = query[d];
            }
        });
        return;
    }
    int8_t *digits = reinterpret_cast<int8_t *>(query + dim);
    for_row_tiles<digit_rows>(0, rows.count, [&](auto size, int first) {
        for (int r = 0; r < size.value; ++r) {
            const int row = first + r;
            load_query(row);
            s.query_scales[row] = to_digits(query, dim, largest_size(query, dim), digits, digits + dim,
                                            s.query_offsets + 2 * row);
            int8_t *to = s.query_digits + 2 * first * dim + 8 * r;
            for (int64_t d = 0; d < dim; d += 4, to += 8 * size.value) {
                memcpy(to, digits + d, 4);
                memcpy(to + 4, digits + dim + d, 4);
            }
        }
    });
}

// All in one: otherwise GCC keeps the sums of the tiles in memory where a vector of lanes is several registers (NEON).
__attribute__((flatten)) void attend(const AttentionRows &rows, const AttentionChunk &c,
                                     const AttentionState &out) {
    const AttentionScratch &s = rows.scratch;
    const int64_t dim = rows.head_dim;
    int64_t furthest = 0, seen[attention_blocks];
    for (int r = 0; r < rows.count; ++r) furthest = rows.limits[r] > furthest ? rows.limits[r] : furthest;
    for (int b = 0; b < c.blocks; ++b) {
        const int64_t positions = furthest - c.starts[b];
        seen[b] = positions < 0 ? 0 : positions < attention_block ? positions : attention_block;
        float *scores = s.scores + b * attention_block;
        if (rows.type == EDGE_KV_INT8) {
            for (int64_t p = 0; p < attention_block; p += 16) {
                prefetch_far(reinterpret_cast<const uint8_t *>(block_scales(rows, c.values[b]) + p));
                prefetch_far(reinterpret_cast<const uint8_t *>(block_scales(rows, c.next[b]) + p));
            }
            score_block_int8(rows, c.keys[b], seen[b], scores, c.values[b]);
            continue;
        }
        const uint8_t *following = c.values[b];
        score_keys(rows, c.keys[b], seen[b], scores, following);
    }
    for (int r = 0; r < rows.count; ++r) soften(rows, c, r, out.maxima + r, out.sums + r);
    if (rows.type == EDGE_KV_INT8) {
        for_row_tiles<digit_rows>(0, rows.count, [&](auto size, int row) {
            for (int64_t column = 0; column < dim; column += 16) {
                weigh_int8<size.value>(s, c, seen, row, dim, column, out.outputs);
            }
        });
        return;
    }
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
