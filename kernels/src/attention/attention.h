// Dense and tree-masked attention of a batch over the KV cache.
//
// The sequence is cut into chunks of 256 positions at fixed places. Each chunk gives an unnormalised softmax
// part, and parts are merged in order: the result is the same whether one thread walks along the chunks (prefill)
// or many threads take one each (decode at long context).
#pragma once

#include <cstdint>

#include "attention/cache.h"
#include "threads/pool.h"
#include "tiers/kernels.h"

namespace edge {

// Places the scratch memory of `rows` query rows at `memory`, aligned to 64, or nullptr; returns its bytes.
uint64_t place_attention_scratch(uint8_t *memory, int64_t head_dim, int64_t rows, AttentionScratch *scratch);

// maxima, sums and outputs of `rows` rows, side by side.
inline int64_t state_floats(int64_t rows, int64_t head_dim) { return rows * (head_dim + 2); }

inline AttentionState state_at(float *base, int64_t rows) { return {base, base + rows, base + 2 * rows}; }

void clear(const AttentionState &state, int64_t rows, int64_t head_dim);

// outputs[row][head_dim] = the state, normalised and in the space of the values.
void finish(const Kernels &kernels, const CacheShape &shape, const AttentionState &state, int64_t rows,
            float *const *outputs);

// Works in memory of the caller: bytes() bytes, aligned to 64, which place() takes before the first run.
class Attention {
   public:
    Attention(const CacheShape &shape, int64_t heads, int64_t max_tokens, int32_t workers);

    // out[n][heads * head_dim] for queries of the same shape, whose keys and values are rows past .. past + n of
    // the cache. tree: [n] masks over those rows, or nullptr for causal order. Both strides in floats.
    void run(const edge_parallel &parallel, const Kernels &kernels, const CacheView &cache, int64_t layer,
             const float *queries, float *out, int64_t stride, int64_t n, int64_t past, const uint64_t *tree);

    uint64_t bytes() const { return bytes_; }
    void place(uint8_t *memory) { lay_out(memory); }

   private:
    // What one thread works with.
    struct Worker {
        AttentionScratch scratch;
        AttentionState part, state;
        int64_t prepared;  // the task whose queries are in the scratch memory
    };
    struct Task;  // the query rows of one task

    uint64_t lay_out(uint8_t *memory);  // or, with nullptr, only counts the bytes

    const int64_t heads_, kv_heads_, head_dim_, group_, most_rows_, worker_count_, split_floats_;
    const uint64_t bytes_;
    Worker *workers_ = nullptr;
    float *split_scratch_ = nullptr;  // touched only as far as the context reaches
};

}  // namespace edge
