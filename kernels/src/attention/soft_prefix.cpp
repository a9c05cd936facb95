// A prefix in plain loops: it has a few rows, and a few tokens of a pass see it.
#include "attention/soft_prefix.h"

#include <algorithm>
#include <cmath>

namespace edge {

SoftPrefix::SoftPrefix(const CacheShape &shape, const Kernels &kernels, int64_t rows, const float *keys,
                       const float *values)
    : rows_(rows), kv_heads_(shape.kv_heads), head_dim_(shape.head_dim) {
    const size_t floats = size_t(shape.layers * kv_heads_ * rows_ * head_dim_);
    keys_.resize(floats);
    values_.resize(floats);
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
        for (int64_t row = 0; row < rows_; ++row) {
            for (int64_t head = 0; head < kv_heads_; ++head) {
                const int64_t from = ((layer * rows_ + row) * kv_heads_ + head) * head_dim_;
                const int64_t to = ((layer * kv_heads_ + head) * rows_ + row) * head_dim_;
                std::copy_n(keys + from, head_dim_, &keys_[size_t(to)]);
                std::copy_n(values + from, head_dim_, &values_[size_t(to)]);
                if (shape.type == EDGE_KV_INT4) kernels.rotate(&values_[size_t(to)], head_dim_);
            }
        }
    }
}

void SoftPrefix::attend(int64_t layer, int64_t kv_head, const float *query,
                        const AttentionState &part) const {
    const size_t block = size_t((layer * kv_heads_ + kv_head) * rows_ * head_dim_);
    const float *const keys = &keys_[block], *const values = &values_[block];
    const double scale = 1.4426950408889634 / std::sqrt(double(head_dim_));  // scores in powers of two
    float scores[most_rows], highest = -INFINITY, sum = 0.0f;
    for (int64_t row = 0; row < rows_; ++row) {
        double score = 0.0;
        for (int64_t d = 0; d < head_dim_; ++d) score += double(query[d]) * double(keys[row * head_dim_ + d]);
        scores[row] = float(score * scale);
        highest = std::max(highest, scores[row]);
    }
    std::fill_n(part.outputs, head_dim_, 0.0f);
    for (int64_t row = 0; row < rows_; ++row) {
        const float weight = std::exp2(scores[row] - highest);
        sum += weight;
        for (int64_t d = 0; d < head_dim_; ++d) part.outputs[d] += weight * values[row * head_dim_ + d];
    }
    part.maxima[0] = highest;
    part.sums[0] = sum;
}

}  // namespace edge
