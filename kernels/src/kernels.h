// The table of kernels that one CPU tier offers. A kernel works on one thread; the callers split the work.
//
// Results do not depend on how many tokens are computed together: every token's arithmetic runs in the same
// order alone or in a batch. So prefill in any chunking, decoding and prompt reuse agree bit for bit.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace edge {

constexpr int linear_lanes = tile_rows;  // a linear kernel computes one tile: 16 outputs per token
constexpr int attention_chunk = 256;     // positions that share one softmax maximum, aligned in the sequence

// The left operands of a linear operator: n rows, zero-padded to `stride` columns.
struct Activations {
    const float *values = nullptr;  // [n][stride]
    int64_t stride = 0;
    int64_t blocks = 0;              // activation blocks per row
    const int8_t *codes = nullptr;   // int8: [n][stride]
    const float *scales = nullptr;   // int8: [n][blocks]
    const int32_t *sums = nullptr;   // int8: [n][blocks], sums of the codes
    const float *float_sums = nullptr;  // exact: [n][blocks], sums of the values
};

// Attention of some query rows of one KV head to the positions of one chunk.
struct AttentionChunk {
    const void *keys, *values;  // row-major [position][head_dim], from position 0
    bool half;                  // float16 rows, else float32
    int64_t head_dim;
    int64_t begin, end;  // positions, at most `attention_chunk` of them
    float scale;
    int rows;
    const float *const *queries;  // [rows] -> [head_dim]
    const int64_t *limits;        // [rows]: row r sees positions below limits[r] ...
    const uint64_t *masks;        // ... and of those from tree_start on only the set bits, unless NULL
    int64_t tree_start;
    float *key_scratch;    // [attention_chunk][head_dim]
    float *score_scratch;  // [rows][attention_chunk]
};

// Unnormalised softmax results: per row the maximum, the sum of exponentials and the weighted sum of values.
struct AttentionState {
    float *maxima, *sums;  // [rows]
    float *outputs;        // [rows][head_dim]
};

struct Kernels {
    const char *name;
    int max_tokens;  // most tokens of one `linear` call

    // out[count][16] = tile x activations of tokens [token, token + count)
    void (*linear)(const Matrix &matrix, int64_t tile, const Activations &activations, int64_t token, int count,
                   float *out);
    // One row of activations to int8, `block` columns per scale; columns is a multiple of 32.
    void (*quantize)(const float *x, int64_t columns, int64_t block, int8_t *codes, float *scales, int32_t *sums);
    void (*sum_blocks)(const float *x, int64_t columns, int64_t block, float *sums);

    // x / rms(x) * weight * scale; `padded` is a multiple of 16, x and weight are zero beyond `size`.
    void (*rms_norm)(const float *x, const float *weight, float eps, float scale, int64_t size, int64_t padded,
                     float *out);
    void (*swiglu)(const float *gate, const float *up, int64_t count, float *out);  // count: a multiple of 16
    void (*rope)(float *head, const float *cosines, const float *sines, int64_t half);
    void (*to_half)(const float *x, int64_t count, uint16_t *out);  // count: a multiple of 16

    void (*attend)(const AttentionChunk &chunk, const AttentionState &out);
    void (*merge)(const AttentionState &part, int rows, int64_t head_dim, const AttentionState &into);

    bool (*all_finite)(const float *x, int64_t count);
};

// Compiled-in tiers that this CPU can run, best first. `name` NULL: the best; unknown or unusable: nullptr.
const Kernels *find_kernels(const char *name);

}  // namespace edge
