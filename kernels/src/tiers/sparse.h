// Means of keys and scores of their windows, for sparse attention. Part of tier.h.

constexpr float lowest_score = -126.0f;  // small weights still order the blocks

template <class Code>
inline void add_key_codes(int64_t dim, const uint8_t *codes, Floats scales, float *sums) {
    constexpr int together = 4 / sizeof(Code);
    for (int64_t d = 0; d < dim; d += together, codes += 64) {
        const Bytes lanes = load_bytes(codes);
        for (int i = 0; i < together; ++i) {
            sums[d + i] += reduce_add(mul(signed_field<8 * sizeof(Code)>(lanes, i), scales));
        }
    }
}

// sums[d] += element d of the 16 keys of group `group` of a block; of 4 bits, of the rotated keys.
void add_keys(edge_kv_type type, int64_t dim, const uint8_t *block, int64_t group, float *sums) {
    const int64_t first = 16 * group * dim;
    if (has_scales(type)) {
        const uint8_t *codes = block + first * element_bits(type) / 8;
        const Floats scales = load(block_scales(type, dim, block) + 16 * group);
        if (type == EDGE_KV_INT16) return add_key_codes<int16_t>(dim, codes, scales, sums);
        int8_t unpacked[16 * max_head_dim];
        if (type == EDGE_KV_INT4) {
            unpack(codes, 16 * dim, unpacked, codes);
            codes = reinterpret_cast<const uint8_t *>(unpacked);
        }
        return add_key_codes<int8_t>(dim, codes, scales, sums);
    }
    for (int64_t d = 0; d < dim; ++d) {
        const int64_t at = first + 16 * d;
        sums[d] += reduce_add(type == EDGE_KV_F16 ? load_half(reinterpret_cast<const uint16_t *>(block) + at)
                                                  : load(reinterpret_cast<const float *>(block) + at));
    }
}

// scores[row][0 .. 64): the products of the prepared queries with the windows of a block. In one, as `attend`.
__attribute__((flatten)) void score_windows(const AttentionRows &rows, const uint8_t *block,
                                            const uint8_t *next, float *scores) {
    score_keys(rows, block, attention_block, scores, next);
}

// The maximum of `count` scores, and the sum of their powers of two relative to it.
void sum_powers(const float *scores, int64_t count, float *maximum, float *sum) {
    const Floats hidden = set(-INFINITY);
    Floats largest = hidden;
    for (int64_t i = 0; i < count; i += 16) {
        largest = max(largest, select_below(i, count, load(scores + i), hidden));
    }
    *maximum = reduce_max(largest);
    const Floats shift = set(*maximum);
    Floats total = zero();
    for (int64_t i = 0; i < count; i += 16) {
        total = add(total,
                    select_below(i, count, exponential2(sub(load(scores + i), shift), lowest_score), zero()));
    }
    *sum = reduce_add(total);
}

// out[i] += 2^(scores[i] - maximum) * factor; the exponent is clamped, since the maximum is that of other windows.
void add_weights(const float *scores, int64_t count, float maximum, float factor, float *out) {
    const Floats shift = set(maximum), scale = set(factor), highest = set(largest_exponent);
    for (int64_t i = 0; i < count; i += 16) {
        const Floats weight = exponential2(min(highest, sub(load(scores + i), shift)), lowest_score);
        store(out + i, fma(weight, scale, load(out + i)));
    }
}
