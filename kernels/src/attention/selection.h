// Which blocks of the cache each query reads in sparse attention (InfLLM-V2, arXiv 2509.24663).
//
// The heads of a group share a selection. A query's selection depends on the rows on its path alone: scores of a
// window, and the sums over windows in fixed chunks, are the same whoever computes them and beside whom.
#pragma once

#include <cstdint>

#include "attention/attention.h"
#include "attention/cache.h"
#include "attention/path.h"
#include "attention/summaries.h"
#include "threads/pool.h"
#include "tiers/kernels.h"

namespace edge {

// A query token of a batch and the rows on its path, its own included.
struct SparseQuery {
    int64_t token, rows;
};

// Sparse queries of one batch over one layer.
struct SparseBatch {
    const CacheView &cache;
    int64_t layer, past;
    const float *queries;  // [token][heads * head_dim], `stride` floats apart
    int64_t stride;
    const uint64_t *tree;  // [token] or nullptr
    const SparseQuery *list;
    int64_t count;
};

// Works in memory of the caller, like Attention.
class BlockSelection {
   public:
    BlockSelection(const CacheShape &shape, const edge_sparse &sparse, int64_t heads, int64_t max_tokens,
                   int32_t workers);

    // Selects for every query of the batch; the cache's summaries are those of its rows.
    void run(const edge_parallel &parallel, const Kernels &kernels, const SparseBatch &batch);

    // Ids of the blocks that query `index` of the batch reads, ascending.
    const int32_t *blocks(int64_t index, int64_t kv_head) const {
        return blocks_ + (index * kv_heads_ + kv_head) * most_blocks;
    }
    int64_t count(int64_t index, int64_t kv_head) const { return counts_[index * kv_heads_ + kv_head]; }

    uint64_t bytes() const { return bytes_; }
    void place(uint8_t *memory) { lay_out(memory); }

    const int64_t most_blocks;  // of one query

   private:
    struct Worker;
    struct Task;

    uint64_t lay_out(uint8_t *memory);
    Task task_at(const SparseBatch &batch, int64_t index, int64_t tile_tokens) const;
    AttentionRows rows_of(const Task &task, const Worker &worker) const;
    void prepare(const Kernels &kernels, const SparseBatch &batch, const Task &task, Worker *worker) const;
    void score_chunk(const Kernels &kernels, const SparseBatch &batch, const Task &task, SummaryLevel level,
                     int64_t chunk, int64_t end, const Worker &worker) const;
    void add_chunk_weights(const Kernels &kernels, const Task &task, int64_t token, int64_t chunk,
                           const Worker &worker, const float *maxima, const float *sums, float *scores) const;
    void run_task(const Kernels &kernels, const SparseBatch &batch, const Task &task, Worker *worker);
    void run_split(const edge_parallel &parallel, const Kernels &kernels, const SparseBatch &batch);
    void choose(const SparseBatch &batch, const Task &task, int64_t token, const float *scores,
                int32_t *pooled);

    const edge_sparse sparse_;
    const SummaryShape summaries_;
    const int64_t heads_, kv_heads_, head_dim_, group_;
    const int64_t max_tokens_, worker_count_;
    const int64_t tokens_per_tile_, window_capacity_, block_capacity_, path_bytes_;
    const uint64_t bytes_;
    int32_t *blocks_ = nullptr, *counts_ = nullptr;
    float *parts_ = nullptr;  // maxima and sums of the normalisers' chunks
    Worker *workers_ = nullptr;
};

}  // namespace edge
