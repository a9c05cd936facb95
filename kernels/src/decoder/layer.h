// The steps of a layer that the decoder and the operators share, for one token each.
#pragma once

#include <cstdint>

#include "attention/cache.h"
#include "tiers/kernels.h"

namespace edge {

// out[columns] = the token's row, times `scale`.
void embed_token(const Matrix &embedding, int64_t token, float scale, float *out);

// out[2][half]: cosines and sines of the position's angles, times `scale`.
void rope_row(float position, const float *inverse_frequency, int64_t half, float scale, float *out);

// Rotates all heads of a token's queries and keys, and writes keys and values into its row of the cache.
void append_token(const Kernels &kernels, const CacheView &cache, int64_t layer, int64_t position,
                  const float *rope, int64_t heads, float *queries, float *keys, const float *values);

}  // namespace edge
