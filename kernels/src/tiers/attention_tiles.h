// What all attention kernels share: powers of two, tiles of rows and columns, memory fetched ahead. Part of tier.h.

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

inline const float *block_scales(edge_kv_type type, int64_t dim, const uint8_t *block) {
    return reinterpret_cast<const float *>(block + attention_block * dim * element_bits(type) / 8);
}

// Calls tile(vectors as a constant, column) over `columns` columns, V vectors of 16 at a time, then one.
template <int V, class Tile>
inline void for_column_tiles(int64_t columns, const Tile &tile) {
    int64_t column = 0;
    for (; column + 16 * V <= columns; column += 16 * V) tile(Constant<V>(), column);
    for (; column < columns; column += 16) tile(Constant<1>(), column);
}

// Sets what the row does not see of the 64 positions from `start` on.
inline void hide(const AttentionRows &rows, int row, int64_t start, float value, float *scores) {
    const int64_t limit = rows.limits[row] - start;
    const int64_t first = rows.starts != nullptr ? rows.starts[row] - start : 0;
    const Floats hidden = set(value);
    for (int64_t p = 0; p < attention_block; p += 16) {
        const Floats before_limit = select_below(p, limit, load(scores + p), hidden);
        store(scores + p, select_below(p, first, hidden, before_limit));
    }
}

// Four chains of maxima and sums, so that none waits for the one before.
constexpr int chains = attention_block / 16;

inline float reduce_max(const Floats *x) { return reduce_max(max(max(x[0], x[1]), max(x[2], x[3]))); }
inline float reduce_add(const Floats *x) { return reduce_add(add(add(x[0], x[1]), add(x[2], x[3]))); }

// Hides what the row does not see of a chunk; returns the largest score, and whether all of a block is seen.
inline float hide_unseen(const AttentionRows &rows, const AttentionChunk &c, int row, bool *all_seen) {
    float *scores = rows.scratch.scores + row * attention_chunk;
    Floats largest[chains];
    for (int k = 0; k < chains; ++k) largest[k] = set(-INFINITY);
    for (int b = 0; b < c.blocks; ++b) {
        const int64_t end = c.starts[b] + attention_block;
        float *part = scores + b * attention_block;
        all_seen[b] = end <= rows.limits[row] && (!rows.starts || rows.starts[row] <= c.starts[b]);
        if (!all_seen[b]) hide(rows, row, c.starts[b], -INFINITY, part);
        for (int k = 0; k < chains; ++k) largest[k] = max(largest[k], load(part + 16 * k));
    }
    return reduce_max(largest);
}
