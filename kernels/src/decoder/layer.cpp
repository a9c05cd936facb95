// Embedding, rotary angles and cache rows of single tokens.
#include "decoder/layer.h"

#include <cmath>

namespace edge {

void embed_token(const Matrix &embedding, int64_t token, float scale, float *out) {
    dequantize_row(embedding, token, out);
    for (int64_t i = 0; i < embedding.columns; ++i) out[i] *= scale;
}

void rope_row(float position, const float *inverse_frequency, int64_t half, float scale, float *out) {
    for (int64_t i = 0; i < half; ++i) {
        const float angle = position * inverse_frequency[i];  // in float, as the models were trained
        const bool turns = inverse_frequency[i] != 0.0f;
        out[i] = turns ? std::cos(angle) * scale : 1.0f;
        out[half + i] = turns ? std::sin(angle) * scale : 0.0f;
    }
}

void append_token(const Kernels &kernels, const CacheView &cache, int64_t layer, int64_t position,
                  const float *rope, int64_t heads, float *queries, float *keys, const float *values) {
    const int64_t dim = cache.shape.head_dim, half = dim / 2;
    const auto rotate = [&](float *head) {
        if (rope != nullptr) kernels.rope(head, rope, rope + half, half);
    };
    for (int64_t head = 0; head < heads; ++head) rotate(queries + head * dim);
    for (int64_t head = 0; head < cache.shape.kv_heads; ++head) {
        rotate(keys + head * dim);
        cache.store(kernels, layer, head, position, keys + head * dim, values + head * dim);
    }
}

}  // namespace edge
