// One function around each inner loop of a tier, for scripts/cycles, which reads them in assembly; never linked.
// EDGE_TIER is the tier's source file.
//
// What a matrix of the named quantization has is constant here, so that one group of columns is a loop without choices.
#include EDGE_TIER

// Multiply-adds of one turn of the loop that follows; a comment in the assembly.
#define EDGE_TURN(count) asm volatile("# edge-turn %c0" ::"i"(count))
#define EDGE_LOOP extern "C" __attribute__((flatten, visibility("default"))) void

namespace edge {
namespace {

template <int bits, int group>
Matrix with_groups(const Matrix &m) {
    Matrix known = m;
    known.minimum = false;
    known.group = known.block = group;
    known.group_bytes = group * 2 * bits + 2 * tile_rows;
    return known;
}

template <int bits, int group>
inline void one_token(const Matrix &m, const uint8_t *tile, int64_t distance, const Activations &a,
                      float *out) {
    EDGE_TURN(linear_tiles * tile_rows * group);
    linear_int8<bits, 1, linear_tiles, true>(with_groups<bits, group>(m), tile, distance, a, 0, out,
                                             linear_lanes);
}

template <int bits, int group>
inline void many_tokens(const Matrix &m, const Unpacked *weights, int64_t last, const Activations &a,
                        float *out, int64_t stride) {
    constexpr bool biased = bits == 8 && biased_offset != 0;
    EDGE_TURN(block_tiles * tile_rows * block_tokens * group);
    multiply_unpacked<biased, block_tiles, block_tokens>(with_groups<bits, group>(m), weights, 0, last, a, 0,
                                                         out, stride);
}

inline AttentionRows with_int8(const AttentionRows &rows) {
    AttentionRows known = rows;
    known.type = EDGE_KV_INT8;
    return known;
}

}  // namespace

EDGE_LOOP loop_one_int4_g32(const Matrix &m, const uint8_t *tile, int64_t distance, const Activations &a,
                            float *out) {
    one_token<4, 32>(m, tile, distance, a, out);
}
EDGE_LOOP loop_one_int4_g128(const Matrix &m, const uint8_t *tile, int64_t distance, const Activations &a,
                             float *out) {
    one_token<4, 128>(m, tile, distance, a, out);
}
EDGE_LOOP loop_one_ternary(const Matrix &m, const uint8_t *tile, int64_t distance, const Activations &a,
                           float *out) {
    one_token<2, 128>(m, tile, distance, a, out);
}
EDGE_LOOP loop_one_int8(const Matrix &m, const uint8_t *tile, int64_t distance, const Activations &a,
                        float *out) {
    one_token<8, 32>(m, tile, distance, a, out);
}

EDGE_LOOP loop_many_g32(const Matrix &m, const Unpacked *weights, int64_t last, const Activations &a,
                        float *out, int64_t stride) {
    many_tokens<4, 32>(m, weights, last, a, out, stride);
}
EDGE_LOOP loop_many_g128(const Matrix &m, const Unpacked *weights, int64_t last, const Activations &a,
                         float *out, int64_t stride) {
    many_tokens<4, 128>(m, weights, last, a, out, stride);
}
EDGE_LOOP loop_many_int8(const Matrix &m, const Unpacked *weights, int64_t last, const Activations &a,
                         float *out, int64_t stride) {
    many_tokens<8, 32>(m, weights, last, a, out, stride);
}

EDGE_LOOP loop_scores_float16(const AttentionRows &rows, const uint16_t *keys, int64_t positions,
                              float *scores, const uint8_t *following) {
    EDGE_TURN(score_rows * score_vectors * 16);
    score_block(rows, keys, positions, scores, following);
}
EDGE_LOOP loop_scores_float32(const AttentionRows &rows, const float *keys, int64_t positions, float *scores,
                              const uint8_t *following) {
    EDGE_TURN(score_rows * score_vectors * 16);
    score_block(rows, keys, positions, scores, following);
}
EDGE_LOOP loop_scores_int8(const AttentionRows &rows, RowRange range, const uint8_t *keys, int64_t positions,
                           float *scores, const uint8_t *following) {
    EDGE_TURN(four_rows * 64);
    score_block_codes<int8_t>(with_int8(rows), range, keys, positions, scores, following);
}
EDGE_LOOP loop_scores_int16(const AttentionRows &rows, RowRange range, const uint8_t *keys, int64_t positions,
                            float *scores, const uint8_t *following) {
    EDGE_TURN(pair_rows * pair_vectors * 32);
    score_block_codes<int16_t>(rows, range, keys, positions, scores, following);
}

EDGE_LOOP loop_values_float16(const AttentionRows &rows, const AttentionChunk &c, const int64_t *seen,
                              float *outputs) {
    EDGE_TURN(value_rows * value_vectors * 16);
    weigh_blocks<uint16_t>(rows, c, seen, outputs);
}
EDGE_LOOP loop_values_float32(const AttentionRows &rows, const AttentionChunk &c, const int64_t *seen,
                              float *outputs) {
    EDGE_TURN(value_rows * value_vectors * 16);
    weigh_chunk<uint16_t>(rows, c, seen, outputs);
}
EDGE_LOOP loop_values_int8(const AttentionRows &rows, RowRange range, const AttentionChunk &c,
                           const int64_t *seen, float *outputs) {
    EDGE_TURN(four_rows * 64);
    weigh_codes<int8_t>(with_int8(rows), range, c, seen, outputs);
}
EDGE_LOOP loop_values_int16(const AttentionRows &rows, RowRange range, const AttentionChunk &c,
                            const int64_t *seen, float *outputs) {
    EDGE_TURN(pair_rows * pair_vectors * 32);
    weigh_codes<int16_t>(rows, range, c, seen, outputs);
}

EDGE_LOOP loop_halves(const uint16_t *halves, int64_t count, float *out) {
    EDGE_TURN(16);
    for (int64_t i = 0; i < count; i += 16) store(out + i, load(halves + i));
}
EDGE_LOOP loop_nibbles(const uint8_t *packed, int64_t count, int8_t *codes, const uint8_t *following) {
    EDGE_TURN(128);
    unpack(packed, count, codes, following);
}
EDGE_LOOP loop_powers(float *scores, int64_t count, const Floats &shift) {
    EDGE_TURN(16);
    for (int64_t i = 0; i < count; i += 16) store(scores + i, exponential2(sub(load(scores + i), shift)));
}

}  // namespace edge
