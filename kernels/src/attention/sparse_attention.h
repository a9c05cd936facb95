// Block-sparse attention of a batch over the KV cache (InfLLM-V2): each query reads the blocks it has selected.
//
// Each block gives an unnormalised softmax part, and a query's parts are merged in ascending order of blocks: the
// result is the same whether a thread walks along the blocks of many queries (prefill) or many threads take a few
// blocks of one query each (decode). Queries within dense_len are left to dense attention.
#pragma once

#include <cstdint>

#include "attention/attention.h"
#include "attention/cache.h"
#include "attention/path.h"
#include "attention/selection.h"
#include "threads/pool.h"
#include "tiers/kernels.h"

namespace edge {

// What a batch reads and computes at most, counted as positions of keys and values.
struct SparseWork {
    int64_t positions, pairs;
};

inline SparseWork dense_work(const Sequence &s) {
    const int64_t end = s.past + s.n;
    return {end, s.tree ? s.n * end : s.n * s.past + s.n * (s.n + 1) / 2};
}

// Works in memory of the caller, like Attention.
class SparseAttention {
   public:
    SparseAttention(const CacheShape &shape, const edge_sparse &sparse, int64_t heads, int64_t max_tokens,
                    int32_t workers);

    // Like Attention::run, which it calls for queries that are dense. The caches have summaries; it keeps them up to
    // date for the rows before a tree, or for all rows. `finish_batch` follows the last layer.
    void run(const edge_parallel &parallel, const Kernels &kernels, Attention &dense, int64_t layer,
             const float *queries, float *out, int64_t stride, const Sequence *sequences, int64_t count);

    // After the last layer of a batch, for each of its sequences: the summaries are those of all layers now.
    void finish_batch(const Sequence &sequence) const;

    // The selections of the last sequence of the last `run`, [n][kv_heads][width]: ids of blocks, ascending, then -1;
    // a dense query has none. width: topk + window_size / block_size.
    void copy_selections(int64_t n, int64_t width, int32_t *selected) const;

    SparseWork work(const Sequence &sequence) const;

    uint64_t bytes() const { return bytes_ + selection_.bytes(); }
    void place(uint8_t *memory) {
        lay_out(memory);
        selection_.place(memory + bytes_);
    }

   private:
    struct Worker;
    struct Task;

    uint64_t lay_out(uint8_t *memory);

    Task task_at(const SparseBatch &batch, float *out, int64_t index, int64_t tile_tokens) const;
    void prepare(const Kernels &kernels, const SparseBatch &batch, const Task &task, Worker *worker) const;
    void attend(const Kernels &kernels, const SparseBatch &batch, const Task &task, int64_t first,
                int64_t last, int64_t block, int64_t next, Worker *worker, const AttentionState &part) const;
    void walk(const Kernels &kernels, const SparseBatch &batch, const Task &task, Worker *worker) const;
    void run_split(const edge_parallel &parallel, const Kernels &kernels, const SparseBatch &batch,
                   float *out);
    void run_sequence(const edge_parallel &parallel, const Kernels &kernels, int64_t layer,
                      const float *queries, float *out, int64_t stride, const Sequence &sequence);
    bool is_sparse(int64_t rows) const { return rows > sparse_.dense_len; }
    int64_t sparse_tokens(const Sequence &sequence) const;  // how many of its tokens are sparse

    const edge_sparse sparse_;
    const int64_t heads_, kv_heads_, head_dim_, group_, max_tokens_, worker_count_, tokens_per_tile_;
    BlockSelection selection_;
    const int64_t split_floats_, path_bytes_;
    const uint64_t bytes_;       // beside those of the selection
    Sequence *dense_ = nullptr;  // what is left to dense attention
    SparseQuery *queries_ = nullptr;
    int64_t query_count_ = 0;  // of the last sequence
    Worker *workers_ = nullptr;
    float *split_scratch_ = nullptr;
};

}  // namespace edge
