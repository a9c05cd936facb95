// The table of kernels that one CPU tier offers. A kernel works on one thread; the callers split the work.
//
// Results do not depend on how many tokens are computed together: every token's arithmetic runs in the same
// order alone or in a batch. So prefill in any chunking, decoding and prompt reuse agree bit for bit.
#pragma once

#include <stdint.h>

#include "linear/matrix.h"

namespace edge {

constexpr int linear_lanes = tile_rows;  // a linear kernel computes one tile: 16 outputs per token
constexpr int attention_block = 64;      // positions of a block of the KV cache
constexpr int attention_blocks = 4;      // blocks that share one softmax maximum
constexpr int attention_chunk = attention_blocks * attention_block;
constexpr int key_group = 16;       // keys that stand side by side in a block
constexpr int max_head_dim = 1024;  // keeps the sums of int8 products far from overflow
constexpr int shared_rows = 8;      // int4 rows of two positions may share bytes, within so many

constexpr int element_bits(edge_kv_type type) {
    return type == EDGE_KV_INT4 ? 4 : type == EDGE_KV_INT8 ? 8 : type == EDGE_KV_F32 ? 32 : 16;
}
constexpr bool has_scales(edge_kv_type type) {
    return type == EDGE_KV_INT4 || type == EDGE_KV_INT8 || type == EDGE_KV_INT16;
}

// Scores of sparse attention may exceed the maximum that they are taken relative to; the exponents are clamped here,
// where a sum over thousands of heads is still finite: e^80, as a power of two.
constexpr float largest_exponent = 80.0f * 1.44269504f;
constexpr int linear_tokens = 132;  // the most of one call; a multiple of every tier's block_tokens
constexpr int linear_tiles = 2;     // the most of one call

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
    int rows = 1;                   // of codes that a token has; to a kernel each is a token of its own
    const int8_t *codes = nullptr;  // nullptr: exact products with the values
    const float *scales = nullptr;  // of the blocks
    const int32_t *corrections =
        nullptr;                     // the tier's sum bias - zero code of the weights x sum of the codes
    const float *offsets = nullptr;  // -(the sum bias as a float) x scale
    const float *sums = nullptr;  // scale x sum of the block's codes; exact: [n][blocks] sums of the values
};

// Where `quantize` writes one row of a batch of `count`.
struct QuantizedRow {
    int8_t *codes;
    float *scales;
    int32_t *corrections;
    float *offsets, *sums;
    int64_t count;
};

// Scratch memory of attention for up to `rows` query rows; placed by place_attention_scratch.
struct AttentionScratch {
    float *queries;         // [tile of rows][head_dim][row], scaled
    int16_t *query_codes;   // integer keys: [tile of rows][head_dim / w][row][w], w codes of a key in 4 bytes
    float *query_scales;    // [rows]
    float *tile;            // keys or values in float32, at most those of a chunk
    float *scores;          // [rows][attention_chunk]
    int16_t *weight_codes;  // integer values: [rows][attention_chunk]
    float *weight_scales;   // [rows][attention_blocks]
};

// Query rows of one KV head.
struct AttentionRows {
    edge_kv_type type;
    int64_t head_dim;
    float scale;
    int count;
    const float *const *queries;  // [count] -> [head_dim]
    const int64_t *limits;        // [count]: row r sees positions below limits[r]
    const int64_t *starts;        // [count]: from starts[r] on, nullptr: from the first one
    AttentionScratch scratch;
};

// Blocks of the cache that share one softmax maximum, in the layout of cache.h.
struct AttentionChunk {
    int blocks;
    const uint8_t *keys[attention_blocks], *values[attention_blocks];
    int64_t starts[attention_blocks];       // first positions
    const uint8_t *next[attention_blocks];  // keys that will be read after this chunk, worth fetching
};

// Unnormalised softmax results: per row the maximum, the sum of exponentials and the weighted sum of values.
struct AttentionState {
    float *maxima, *sums;  // [rows]
    float *outputs;        // [rows][head_dim]
};

struct Kernels {
    const char *name;
    int max_tokens;       // the most of one batch for which weights are used as they are read
    int streamed_tokens;  // up to so many in a batch, `linear` reads its two tiles at the same time
    int direct_tokens;    // up to so many form such batches, one after the other over the same tiles
    int block_tokens;     // more form batches of so many, for which `linear` unpacks weights ...
    int block_tiles;      // ... of so many tiles at once
    int32_t sum_bias;     // added to the integer sums of a block
    int int8_zero_code;   // of int8 weights as the dot products see them

    // out[tiles][count][16] = tiles `tile`, `tile` + `distance` x activations of `count` tokens from `token` on, where
    // a batch starts; count is at most linear_tokens. Quantized tokens must be one batch, or whole batches but for
    // the last one of all.
    void (*linear)(const Matrix &matrix, int64_t tile, int tiles, int64_t distance,
                   const Activations &activations, int64_t token, int count, float *out);
    // One token to int8, `block` columns per scale, at most max_block; columns is a multiple of 32. Each row after the
    // first holds what the rounding of those before it took away, with scales of its own.
    void (*quantize)(const float *x, int64_t columns, int64_t block, int32_t zero_code,
                     const QuantizedRow *out, int rows);
    void (*sum_blocks)(const float *x, int64_t columns, int64_t block, float *sums);

    // x / rms(x) * weight * scale; `padded` is a multiple of 16, x and weight are zero beyond `size`.
    void (*rms_norm)(const float *x, const float *weight, float eps, float scale, int64_t size,
                     int64_t padded, float *out);
    void (*swiglu)(const float *gate, const float *up, int64_t count, float *out);  // count: a multiple of 16
    void (*rope)(float *head, const float *cosines, const float *sines, int64_t half);
    void (*to_half)(const float *x, int64_t count, uint16_t *out);  // count: a multiple of 16

    // One row of the cache to codes; returns the scale. Of 16 bits those of keys and of values differ. int4: a byte per
    // code, of the rotated row.
    float (*quantize_int8)(const float *x, int64_t count, int8_t *codes);  // count: a multiple of 16
    float (*quantize_int4)(const float *x, int64_t count, uint8_t *codes);
    float (*quantize_key)(const float *x, int64_t count, int16_t *codes);
    float (*quantize_value)(const float *x, int64_t count, int16_t *codes);
    // A fixed rotation, which is its own inverse: spreads what a few elements have over all.
    void (*rotate)(float *x, int64_t count);
    // Brings the queries into the scratch memory, before `attend`.
    void (*prepare_queries)(const AttentionRows &rows);
    void (*attend)(const AttentionRows &rows, const AttentionChunk &chunk, const AttentionState &out);
    void (*merge)(const AttentionState &part, int rows, int64_t head_dim, const AttentionState &into);

    // sums[d] += element d of the 16 keys of group `group` of a block.
    void (*add_keys)(edge_kv_type type, int64_t head_dim, const uint8_t *block, int64_t group, float *sums);
    // scores[row][0 .. 64) of the prepared queries with a block of key summaries, rows attention_chunk apart. `next`
    // will be read after it, and is worth fetching.
    void (*score_windows)(const AttentionRows &rows, const uint8_t *block, const uint8_t *next,
                          float *scores);
    // The maximum of `count` scores, and the sum of their powers of two relative to it.
    void (*sum_powers)(const float *scores, int64_t count, float *maximum, float *sum);
    // out[i] += 2^(scores[i] - maximum) * factor, for count rounded up to 16
    void (*add_weights)(const float *scores, int64_t count, float maximum, float factor, float *out);

    bool (*all_finite)(const float *x, int64_t count);

    // Register-only loops, and the multiply-adds that one of their iterations does.
    int64_t (*int8_peak)(int64_t iterations);
    int64_t (*float_peak)(int64_t iterations);
    int64_t int8_peak_operations, float_peak_operations;

    // Tokens of one batch when n of them are quantized together: equal shares, or whole blocks.
    int64_t batch(int64_t n) const {
        if (n > direct_tokens) return block_tokens;
        const int64_t batches = (n + max_tokens - 1) / max_tokens;
        return (n + batches - 1) / batches;
    }

    // The code of a weight of zero as the integer dot products see it.
    int32_t zero_code(const Matrix &matrix) const {
        return matrix.kind == EDGE_INT8 ? int8_zero_code : matrix.zero_code;
    }
};

// Compiled-in tiers that this CPU can run, best first. `name` nullptr: the best; unknown or unusable: nullptr.
const Kernels *find_kernels(const char *name);

}  // namespace edge
