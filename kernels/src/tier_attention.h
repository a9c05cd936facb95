// Attention of query rows to one chunk of the KV cache, and merging the parts. Part of tier.h.

inline Floats load_row(const void *rows, bool half, int64_t index) {
    return half ? load_half(static_cast<const uint16_t *>(rows) + index)
                : load(static_cast<const float *>(rows) + index);
}

// Calls hide(i) for the positions of the chunk whose bit in the row's tree mask is off.
template <class Hide>
inline void for_hidden_tree_positions(const AttentionChunk &c, int row, const Hide &hide) {
    for (int64_t i = c.tree_start > c.begin ? c.tree_start - c.begin : 0; i < c.end - c.begin; ++i) {
        if (!(c.masks[row] >> (c.begin + i - c.tree_start) & 1)) hide(i);
    }
}

// key_scratch[d][i] = element d of key i: then one load serves sixteen positions and no sum crosses lanes.
inline void transpose_keys(const AttentionChunk &c, int64_t positions) {
    const int64_t last = c.end - 1;
    for (int64_t p = 0; p < positions; p += 16) {
        for (int64_t d = 0; d < c.head_dim; d += 16) {
            Floats block[16];
            for (int i = 0; i < 16; ++i) {
                // Rows past the end are masked later; the last one stands in for them.
                const int64_t position = c.begin + p + i < last ? c.begin + p + i : last;
                block[i] = load_row(c.keys, c.half, position * c.head_dim + d);
            }
            transpose(block);
            for (int i = 0; i < 16; ++i) store(c.key_scratch + (d + i) * attention_chunk + p, block[i]);
        }
    }
}

// q.k * scale of R rows and 16 V positions from `p` on.
template <int R, int V>
inline void score(const AttentionChunk &c, int row, int64_t p) {
    Floats sums[R][V];
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) sums[r][v] = zero();
    }
    for (int64_t d = 0; d < c.head_dim; ++d) {
        Floats keys[V];
        for (int v = 0; v < V; ++v) keys[v] = load(c.key_scratch + d * attention_chunk + p + 16 * v);
        for (int r = 0; r < R; ++r) {
            const Floats query = set(c.queries[row + r][d]);
            for (int v = 0; v < V; ++v) sums[r][v] = fma(query, keys[v], sums[r][v]);
        }
    }
    for (int r = 0; r < R; ++r) {
        float *scores = c.score_scratch + (row + r) * attention_chunk + p;
        for (int v = 0; v < V; ++v) store(scores + 16 * v, mul(sums[r][v], set(c.scale)));
    }
}

template <int R>
inline void score_rows_at(const AttentionChunk &c, int row, int64_t positions) {
    int64_t p = 0;
    for (; p + 16 * score_vectors <= positions; p += 16 * score_vectors) score<R, score_vectors>(c, row, p);
    for (; p < positions; p += 16) score<R, 1>(c, row, p);
}

// Turns a row's scores into exp(score - maximum) for the positions that it sees, 0 elsewhere.
inline void soften(const AttentionChunk &c, int row, int64_t positions, float *maximum, float *sum) {
    float *scores = c.score_scratch + row * attention_chunk;
    const int64_t limit = c.limits[row] - c.begin;
    const Floats hidden = set(-INFINITY);
    Floats largest = hidden;
    if (c.masks != nullptr) {
        for_hidden_tree_positions(c, row, [&](int64_t i) { scores[i] = -INFINITY; });
    }
    for (int64_t p = 0; p < positions; p += 16) {
        const Floats seen = select_below(p, limit, load(scores + p), hidden);
        store(scores + p, seen);
        largest = max(largest, seen);
    }
    *maximum = reduce_max(largest);
    const Floats shift = set(*maximum == -INFINITY ? 0.0f : *maximum);
    // The clamped exponential of -infinity is tiny, not zero.
    for (int64_t p = 0; p < positions; p += 16) {
        store(scores + p, select_below(p, limit, exponential(sub(load(scores + p), shift)), zero()));
    }
    if (c.masks != nullptr) {
        for_hidden_tree_positions(c, row, [&](int64_t i) { scores[i] = 0.0f; });
    }
    Floats total = zero();
    for (int64_t p = 0; p < positions; p += 16) total = add(total, load(scores + p));
    *sum = reduce_add(total);
}

// outputs of R rows, columns [column, column + 16 V): weighted sums of the values.
template <int R, int V>
inline void weigh(const AttentionChunk &c, int row, int64_t positions, int64_t column, float *outputs) {
    Floats sums[R][V];
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) sums[r][v] = zero();
    }
    for (int64_t i = 0; i < positions; ++i) {
        Floats values[V];
        for (int v = 0; v < V; ++v) {
            values[v] = load_row(c.values, c.half, (c.begin + i) * c.head_dim + column + 16 * v);
        }
        for (int r = 0; r < R; ++r) {
            const Floats weight = set(c.score_scratch[(row + r) * attention_chunk + i]);
            for (int v = 0; v < V; ++v) sums[r][v] = fma(weight, values[v], sums[r][v]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) store(outputs + (row + r) * c.head_dim + column + 16 * v, sums[r][v]);
    }
}

template <int R>
inline void weigh_rows_at(const AttentionChunk &c, int row, int64_t positions, float *outputs) {
    int64_t column = 0;
    for (; column + 16 * value_vectors <= c.head_dim; column += 16 * value_vectors) {
        weigh<R, value_vectors>(c, row, positions, column, outputs);
    }
    for (; column < c.head_dim; column += 16) weigh<R, 1>(c, row, positions, column, outputs);
}

void attend(const AttentionChunk &c, const AttentionState &out) {
    int64_t furthest = c.begin;
    for (int r = 0; r < c.rows; ++r) furthest = c.limits[r] > furthest ? c.limits[r] : furthest;
    const int64_t positions = (furthest < c.end ? furthest : c.end) - c.begin;
    transpose_keys(c, positions);
    int row = 0;
    for (; row + score_rows <= c.rows; row += score_rows) score_rows_at<score_rows>(c, row, positions);
    for (; row < c.rows; ++row) score_rows_at<1>(c, row, positions);
    for (row = 0; row < c.rows; ++row) soften(c, row, positions, out.maxima + row, out.sums + row);
    for (row = 0; row + value_rows <= c.rows; row += value_rows) {
        weigh_rows_at<value_rows>(c, row, positions, out.outputs);
    }
    for (; row < c.rows; ++row) weigh_rows_at<1>(c, row, positions, out.outputs);
}

void merge(const AttentionState &part, int rows, int64_t head_dim, const AttentionState &into) {
    for (int r = 0; r < rows; ++r) {
        if (part.maxima[r] == -INFINITY) continue;
        const float highest = part.maxima[r] > into.maxima[r] ? part.maxima[r] : into.maxima[r];
        float factors[16];
        store(factors, exponential(set(into.maxima[r] - highest)));
        const float old_factor = into.maxima[r] == -INFINITY ? 0.0f : factors[0];
        store(factors, exponential(set(part.maxima[r] - highest)));
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
