// Keys and values that stand before a sequence for some of its tokens only: a prefix that was trained for them.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cache.h"
#include "tiers/kernels.h"

namespace edge {

class SoftPrefix {
   public:
    static constexpr int32_t most_rows = 256;

    // keys, values: [layers][rows][kv_heads][head_dim], copied.
    SoftPrefix(const CacheShape &shape, const Kernels &kernels, int64_t rows, const float *keys,
               const float *values);

    // The part of these rows in the attention of one query row; `part` has room for one.
    void attend(int64_t layer, int64_t kv_head, const float *query, const AttentionState &part) const;

   private:
    const int64_t rows_, kv_heads_, head_dim_;
    std::vector<float> keys_, values_;  // [layers][kv_heads][rows][head_dim], the values as parts have them
};

}  // namespace edge
