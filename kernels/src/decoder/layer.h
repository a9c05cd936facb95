// The steps of a layer that the decoder and the operators share, for one token each.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/cache.h"
#include "threads/pool.h"
#include "tiers/kernels.h"

namespace edge {

// out[columns] = the token's row, times `scale`.
void embed_token(const Matrix &embedding, int64_t token, float scale, float *out);

// out[2][half]: cosines and sines of the position's angles, times `scale`; 1 and 0 for pairs that do not turn, whose
// frequency is 0.
void rope_row(float position, const float *inverse_frequency, int64_t half, float scale, float *out);

// Rotates all heads of a token's queries and keys, unless `rope` is nullptr, and writes keys and values into its row of
// the cache.
void append_token(const Kernels &kernels, const CacheView &cache, int64_t layer, int64_t position,
                  const float *rope, int64_t heads, float *queries, float *keys, const float *values);

// Calls append(token, worker) for n tokens whose rows stand from `past` on. Rows that share bytes are one thread's.
template <class Append>
void append_tokens(const edge_parallel &parallel, int64_t past, int64_t n, const Append &append) {
    const int64_t start = past / shared_rows * shared_rows,
                  pieces = (past + n - start + shared_rows - 1) / shared_rows;
    parallel_for(parallel, pieces, 1, [&](int64_t begin, int64_t end, int32_t worker) {
        const int64_t first = std::max(past, start + begin * shared_rows);
        const int64_t last = std::min(past + n, start + end * shared_rows);
        for (int64_t row = first; row < last; ++row) append(row - past, worker);
    });
}

}  // namespace edge
