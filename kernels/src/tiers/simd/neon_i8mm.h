// Sums of many tokens with the matrix instructions of ARMv8.6, which multiply 2 rows x 8 columns by 8 columns x 2
// tokens. The generic code is in linear_block.h.

#define EDGE_PAIRED_SUMS

// Codes of 16 rows x 8 columns: pairs of rows, each with its 8 columns side by side.
inline void store_words(uint8_t *p, Bytes first, Bytes second) {
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t a = vreinterpretq_u32_u8(first.v[i]), b = vreinterpretq_u32_u8(second.v[i]);
        vst1q_u8(p + 32 * i, vreinterpretq_u8_u32(vzip1q_u32(a, b)));
        vst1q_u8(p + 32 * i + 16, vreinterpretq_u8_u32(vzip2q_u32(a, b)));
    }
}

// sum[p][q]: rows 2p and 2p + 1 times tokens 2q and 2q + 1, in the order of vmmla.
template <bool biased, int M>
struct Sums {
    static constexpr int pairs = (M + 1) / 2;  // an odd last token is paired with itself
    int32x4_t sum[8][pairs];

    void start(const int32_t *corrections) {
        for (int q = 0; q < pairs; ++q) {
            const int32_t two[2] = {corrections[2 * q], corrections[2 * q + 1 < M ? 2 * q + 1 : 2 * q]};
            const int32x2_t pair = vld1_s32(two);
            for (int p = 0; p < 8; ++p) sum[p][q] = vcombine_s32(pair, pair);
        }
    }
    void begin() {}
    void end() {}
    Ints of(int token) const {
        Ints r;
        for (int i = 0; i < 4; ++i) {
            const int32x4_t a = sum[2 * i][token / 2], b = sum[2 * i + 1][token / 2];
            r.v[i] = token % 2 == 0 ? vuzp1q_s32(a, b) : vuzp2q_s32(a, b);
        }
        return r;
    }
};

// Two tokens' codes of 8 columns, from two words of a batch of M tokens.
template <int M>
inline int8x16_t token_pair(const int8_t *codes, int first) {
    int32x2_t words[2];
    for (int word = 0; word < 2; ++word) {
        const int8_t *at = codes + 4 * (word * M + first);
        if (first + 1 < M) {
            words[word] = vreinterpret_s32_s8(vld1_s8(at));
        } else {
            int32_t only;
            memcpy(&only, at, 4);
            words[word] = vdup_n_s32(only);
        }
    }
    return vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(words[0], words[1]), vzip2_s32(words[0], words[1])));
}

template <bool biased, int M, int tiles>
inline void add_products(Sums<biased, M> (&sums)[tiles], const uint8_t *at, int64_t stride,
                         const int8_t *codes) {
    constexpr int pairs = Sums<biased, M>::pairs;
    int8x16_t tokens[pairs];
#pragma GCC unroll 4
    for (int q = 0; q < pairs; ++q) tokens[q] = token_pair<M>(codes, 2 * q);
    for (int i = 0; i < tiles; ++i) {
#pragma GCC unroll 8
        for (int p = 0; p < 8; ++p) {
            uint8x16_t w = vld1q_u8(at + i * stride + 16 * p);
            if (biased) w = veorq_u8(w, vdupq_n_u8(128));
#pragma GCC unroll 4
            for (int q = 0; q < pairs; ++q) {
                sums[i].sum[p][q] = vmmlaq_s32(sums[i].sum[p][q], vreinterpretq_s8_u8(w), tokens[q]);
            }
        }
    }
}
