// Dense attention of a batch, which may hold tokens of several sequences, over their KV caches.
//
// A sequence is cut into chunks of 256 positions at fixed places. Each chunk gives an unnormalised softmax part, and
// parts are merged in order: the result is the same whether one thread walks along the chunks (prefill) or many
// threads take one each (decode at long context). A token of a tree reads its last chunks in the order of its path, so
// that it gets what it would get if its path were decoded token by token.
#pragma once

#include <cstdint>

#include "attention/cache.h"
#include "attention/path.h"
#include "attention/soft_prefix.h"
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

// Tokens of one sequence in a batch; their keys and values are the last n rows of its cache, which come after `past`
// rows that all of them see and, in a tree that grows from batch to batch, `earlier` rows of its tokens in former ones.
struct Sequence {
    const CacheView *cache;
    int64_t first;  // of its tokens in the batch
    int64_t n, past;
    const uint64_t *tree;  // [n] masks over the rows after `past`, or nullptr for causal order
    int64_t earlier = 0;
    const SoftPrefix *prefix = nullptr;  // that the last `soft` tokens see as well
    int64_t soft = 0;

    int64_t furthest() const { return past + earlier + n; }

    // Rows on the path of its token `token`, the token's own included.
    int64_t rows_of(int64_t token) const {
        return past + (tree ? __builtin_popcountll(tree[token]) : token + 1);
    }

    // Whether rows that it does not see stand between those that it does.
    bool has_own_path(int64_t token) const {
        return tree != nullptr && (tree[token] & (tree[token] + 1)) != 0;
    }
};

// Works in memory of the caller: bytes() bytes, aligned to 64, which place() takes before the first run.
class Attention {
   public:
    // window: rows of its path that a token sees, its own included; 0: all.
    Attention(const CacheShape &shape, int64_t heads, int64_t max_tokens, int32_t workers,
              int64_t window = 0);

    // out[tokens][heads * head_dim] for queries of the same shape. stride: floats between tokens of both. `count`
    // sequences have at most max_tokens tokens together.
    void run(const edge_parallel &parallel, const Kernels &kernels, int64_t layer, const float *queries,
             float *out, int64_t stride, const Sequence *sequences, int64_t count);

    uint64_t bytes() const { return bytes_; }
    void place(uint8_t *memory) { lay_out(memory); }

   private:
    // What one thread works with.
    struct Worker {
        AttentionScratch scratch;
        AttentionState part, state;
        uint8_t *path_memory;
        int64_t prepared;  // the task whose queries are in the scratch memory
    };
    struct Plan;  // how a sequence is cut into tasks
    struct Task;  // the query rows of one task
    struct Run;   // what the tasks of a run share

    void plan(const Sequence *sequences, int64_t count, int32_t workers, Run *run);
    void attend(const Run &run, const Task &task, int64_t chunk, Worker *worker,
                const AttentionState &part) const;
    void add_prefix(const Run &run, const Task &task, const AttentionState &part,
                    const AttentionState &state) const;
    void run_split(const edge_parallel &parallel, const Run &run);
    void run_whole(const edge_parallel &parallel, const Run &run);
    uint64_t lay_out(uint8_t *memory);  // or, with nullptr, only counts the bytes
    // The first row that the last of `rows` sees.
    int64_t start_of(int64_t rows) const { return window_ > 0 && rows > window_ ? rows - window_ : 0; }

    const int64_t heads_, kv_heads_, head_dim_, group_, max_tokens_, window_, most_rows_, worker_count_;
    const int64_t path_bytes_;
    const int64_t split_floats_;
    const uint64_t bytes_;
    Plan *plans_ = nullptr;  // [max_tokens]
    Worker *workers_ = nullptr;
    float *split_scratch_ = nullptr;  // touched only as far as the context reaches
};

}  // namespace edge
