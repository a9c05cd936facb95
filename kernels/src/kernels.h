// The table of kernels that one CPU tier offers. A kernel works on one thread; the callers split the work.
//
// Results do not depend on how many tokens are computed together: every token's arithmetic runs in the same
// order alone or in a batch. So prefill in any chunking, decoding and prompt reuse agree bit for bit.
#pragma once

#include <stdint.h>

#include "matrix.h"

namespace edge {

constexpr int linear_lanes = tile_rows;  // a linear kernel computes one tile: 16 outputs per token
constexpr int linear_tokens = 132;       // the most of one call; a multiple of every tier's block_tokens
constexpr int linear_tiles = 2;          // the most of one call
constexpr int attention_chunk = 256;     // positions that share one softmax maximum, aligned in the sequence

// The left operands of a linear operator over n tokens: floats, or int8 codes with a scale per block of columns.
//
// Quantized tokens are interleaved in batches (the last one holds the rest): with c tokens in a batch, the 4 codes
// from column 4j on of its token t stand at byte 4 (j c + t), and what belongs to block b at index b c + t. So a
// kernel walks along one pointer. A batch starts at its first token's `stride` bytes and `blocks` entries.
struct Activations {
    const float *values = nullptr;  // [n][stride]
    int64_t stride = 0;             // columns, padded with zeros
    int64_t blocks = 0;             // activation blocks per row
    int64_t batch = 1;              // tokens of a batch
    const int8_t *codes = nullptr;  // nullptr: exact products with the values
    const float *scales = nullptr;  // of the blocks
    const int32_t *corrections =
        nullptr;                     // the tier's sum bias - zero code of the weights x sum of the codes
    const float *offsets = nullptr;  // -(the sum bias as a float) x scale
    const float *sums = nullptr;  // scale x sum of the block's codes; exact: [n][blocks] sums of the values
};

// Where `quantize` writes one token of a batch of `count`.
struct QuantizedRow {
    int8_t *codes;
    float *scales;
    int32_t *corrections;
    float *offsets, *sums;
    int64_t count;
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
    float *key_scratch;    // [head_dim][attention_chunk]
    float *score_scratch;  // [rows][attention_chunk]
};

// Unnormalised softmax results: per row the maximum, the sum of exponentials and the weighted sum of values.
struct AttentionState {
    float *maxima, *sums;  // [rows]
    float *outputs;        // [rows][head_dim]
};

struct Kernels {
    const char *name;
    int max_tokens;      // so many tokens at most form one batch, for which weights are used as they are read
    int block_tokens;    // more tokens form batches of so many, for which `linear` unpacks weights ...
    int block_tiles;     // ... of so many tiles at once
    int32_t sum_bias;    // added to the integer sums of a block
    int int8_zero_code;  // of int8 weights as the dot products see them

    // out[tiles][count][16] = tiles x activations of `count` tokens from `token` on, where a batch starts; count is
    // at most linear_tokens. Quantized tokens must be one batch, or whole batches but for the last one of all.
    void (*linear)(const Matrix &matrix, int64_t tile, int tiles, const Activations &activations,
                   int64_t token, int count, float *out);
    // One token to int8, `block` columns per scale; columns is a multiple of 32.
    void (*quantize)(const float *x, int64_t columns, int64_t block, int32_t zero_code,
                     const QuantizedRow &out);
    void (*sum_blocks)(const float *x, int64_t columns, int64_t block, float *sums);

    // x / rms(x) * weight * scale; `padded` is a multiple of 16, x and weight are zero beyond `size`.
    void (*rms_norm)(const float *x, const float *weight, float eps, float scale, int64_t size,
                     int64_t padded, float *out);
    void (*swiglu)(const float *gate, const float *up, int64_t count, float *out);  // count: a multiple of 16
    void (*rope)(float *head, const float *cosines, const float *sines, int64_t half);
    void (*to_half)(const float *x, int64_t count, uint16_t *out);  // count: a multiple of 16

    void (*attend)(const AttentionChunk &chunk, const AttentionState &out);
    void (*merge)(const AttentionState &part, int rows, int64_t head_dim, const AttentionState &into);

    bool (*all_finite)(const float *x, int64_t count);

    // Register-only loops, and the multiply-adds that one of their iterations does.
    int64_t (*int8_peak)(int64_t iterations);
    int64_t (*float_peak)(int64_t iterations);
    int64_t int8_peak_operations, float_peak_operations;

    // Tokens of one batch when n of them are quantized together.
    int64_t batch(int64_t n) const { return n <= max_tokens ? max_tokens : block_tokens; }

    // The code of a weight of zero as the integer dot products see it.
    int32_t zero_code(const Matrix &matrix) const {
        return matrix.kind == EDGE_INT8 ? int8_zero_code : matrix.zero_code;
    }
};

// Compiled-in tiers that this CPU can run, best first. `name` NULL: the best; unknown or unusable: nullptr.
const Kernels *find_kernels(const char *name);

}  // namespace edge
