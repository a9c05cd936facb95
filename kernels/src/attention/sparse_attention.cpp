// Walks along the selected blocks of many queries, or spreads those of a few over all threads.
#include "attention/sparse_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "memory/aligned.h"

namespace edge {
namespace {

constexpr int64_t row_tile = 8;          // query rows that the kernels take at once
constexpr int64_t most_tile_rows = 64;   // query rows that walk along the blocks together
constexpr int64_t split_tokens = 4;      // batches up to this size may split their blocks over threads
constexpr int64_t tasks_per_worker = 4;  // with fewer tasks than this, split the blocks
constexpr int64_t blocks_per_piece = 4;

}  // namespace

// What one thread works with.
struct SparseAttention::Worker {
    AttentionScratch scratch;
    AttentionState part, state;
    uint8_t *path_memory;
    PathBlocks path;
    int64_t path_query;  // the query whose path it is, in the present task
    int64_t prepared;    // the task whose queries are in the scratch memory
};

// Some consecutive queries of one KV head; the rows of a query are the heads of the group.
struct SparseAttention::Task {
    int64_t index, kv_head, first, tokens;
    const float *queries[most_tile_rows];
    float *outputs[most_tile_rows];
    int64_t limits[most_tile_rows];
};

SparseAttention::SparseAttention(const CacheShape &shape, const edge_sparse &sparse, int64_t heads,
                                 int64_t max_tokens, int32_t workers)
    : sparse_(sparse),
      heads_(heads),
      kv_heads_(shape.kv_heads),
      head_dim_(shape.head_dim),
      group_(heads / shape.kv_heads),
      max_tokens_(max_tokens),
      worker_count_(workers),
      // Prepared queries stand in tiles of rows, which only groups of whole tiles can take apart again.
      tokens_per_tile_(group_ % row_tile == 0 ? std::max<int64_t>(1, most_tile_rows / group_) : 1),
      selection_(shape, sparse, heads, max_tokens, workers),
      split_floats_(selection_.most_blocks *
                    state_floats(heads * std::min(split_tokens, max_tokens), head_dim_)),
      path_bytes_(PathBlocks::bytes(shape)),
      bytes_(lay_out(nullptr)) {}

uint64_t SparseAttention::lay_out(uint8_t *memory) {
    uint64_t bytes = 0;
    edge::place(memory, &bytes, max_tokens_, &dense_);
    edge::place(memory, &bytes, max_tokens_, &queries_);
    edge::place(memory, &bytes, worker_count_, &workers_);
    const int64_t rows = tokens_per_tile_ * group_;
    for (int64_t i = 0; i < worker_count_; ++i) {
        Worker unused, &worker = memory ? workers_[i] : unused;
        bytes += place_attention_scratch(memory ? memory + bytes : nullptr, head_dim_, rows, &worker.scratch);
        for (AttentionState *state : {&worker.part, &worker.state}) {
            float *floats;
            edge::place(memory, &bytes, state_floats(rows, head_dim_), &floats);
            if (memory != nullptr) *state = state_at(floats, rows);
        }
        edge::place(memory, &bytes, path_bytes_, &worker.path_memory);
    }
    edge::place(memory, &bytes, split_floats_, &split_scratch_);
    return bytes;
}

SparseAttention::Task SparseAttention::task_at(const SparseBatch &batch, float *out, int64_t index,
                                               int64_t tile_tokens) const {
    const int64_t tiles = (batch.count + tile_tokens - 1) / tile_tokens;
    Task task;
    task.index = index;
    task.kv_head = index / tiles;
    task.first = index % tiles * tile_tokens;
    task.tokens = std::min(tile_tokens, batch.count - task.first);
    for (int64_t row = 0; row < task.tokens * group_; ++row) {
        const SparseQuery &query = batch.list[task.first + row / group_];
        const int64_t at = query.token * batch.stride + (task.kv_head * group_ + row % group_) * head_dim_;
        task.queries[row] = batch.queries + at;
        task.outputs[row] = out + at;
        task.limits[row] = query.rows;
    }
    return task;
}

void SparseAttention::prepare(const Kernels &kernels, const SparseBatch &batch, const Task &task,
                              Worker *worker) const {
    if (worker->prepared == task.index) return;
    worker->prepared = task.index;
    worker->path_query = -1;
    AttentionRows rows{};
    rows.type = batch.cache.shape.type;
    rows.head_dim = head_dim_;
    rows.scale = 1.0f / std::sqrt(float(head_dim_));
    rows.count = int(task.tokens * group_);
    rows.queries = task.queries;
    rows.scratch = worker->scratch;
    kernels.prepare_queries(rows);
}

// The part of one block for the task's queries [first, last), which all read it; `next` is probably read after it.
void SparseAttention::attend(const Kernels &kernels, const SparseBatch &batch, const Task &task,
                             int64_t first, int64_t last, int64_t block, int64_t next, Worker *worker,
                             const AttentionState &part) const {
    const int64_t row = first * group_, start = block * attention_block;
    AttentionRows rows{};
    rows.type = batch.cache.shape.type;
    rows.head_dim = head_dim_;
    rows.count = int((last - first) * group_);
    rows.limits = task.limits + row;
    rows.scratch = worker->scratch;
    rows.scratch.queries += row * head_dim_;
    rows.scratch.query_codes += row * head_dim_;
    rows.scratch.query_scales += row;
    AttentionChunk chunk;
    chunk.blocks = 1;
    chunk.starts[0] = start;
    if (batch.tree != nullptr && start + attention_block > batch.past) {
        const int64_t query = task.first + first;
        if (worker->path_query != query) {
            worker->path.build(batch.cache, batch.layer, task.kv_head, batch.past,
                               batch.tree[batch.list[query].token], worker->path_memory);
            worker->path_query = query;
        }
        chunk.keys[0] = worker->path.keys(start);
        chunk.values[0] = worker->path.values(start);
    } else {
        chunk.keys[0] = batch.cache.keys(batch.layer, task.kv_head, start);
        chunk.values[0] = batch.cache.values(batch.layer, task.kv_head, start);
    }
    chunk.next[0] = batch.cache.keys(batch.layer, task.kv_head, next * attention_block);
    kernels.attend(rows, chunk, part);
}

// Walks along the blocks that any query of the task reads; neighbours that read the same one share its conversion.
void SparseAttention::walk(const Kernels &kernels, const SparseBatch &batch, const Task &task,
                           Worker *worker) const {
    prepare(kernels, batch, task, worker);
    clear(worker->state, task.tokens * group_, head_dim_);
    int64_t next[most_tile_rows] = {};  // of each query's selection
    const auto block_of = [&](int64_t token) -> int64_t {
        const int64_t query = task.first + token;
        return next[token] < selection_.count(query, task.kv_head)
                   ? selection_.blocks(query, task.kv_head)[next[token]]
                   : INT64_MAX;
    };
    for (;;) {
        int64_t block = INT64_MAX;
        for (int64_t t = 0; t < task.tokens; ++t) block = std::min(block, block_of(t));
        if (block == INT64_MAX) break;
        const bool alone = batch.tree != nullptr && (block + 1) * attention_block > batch.past;
        for (int64_t first = 0; first < task.tokens;) {
            int64_t last = first;
            while (last < task.tokens && block_of(last) == block && !(alone && last > first)) ++last;
            if (last == first) {
                ++first;
                continue;
            }
            for (int64_t t = first; t < last; ++t) ++next[t];
            const int64_t following = block_of(first);
            attend(kernels, batch, task, first, last, block, following == INT64_MAX ? block : following,
                   worker, worker->part);
            const int64_t row = first * group_;
            kernels.merge(worker->part, int((last - first) * group_), head_dim_,
                          {worker->state.maxima + row, worker->state.sums + row,
                           worker->state.outputs + row * head_dim_});
            first = last;
        }
    }
    finish(kernels, batch.cache.shape, worker->state, task.tokens * group_, task.outputs);
}

// A few queries: the blocks of each are spread over all threads, then merged.
void SparseAttention::run_split(const edge_parallel &parallel, const Kernels &kernels,
                                const SparseBatch &batch, float *out) {
    const int64_t tasks = batch.count * kv_heads_, most = selection_.most_blocks;
    const auto part_at = [&](int64_t task, int64_t i) {
        return state_at(split_scratch_ + state_floats((task * most + i) * group_, head_dim_), group_);
    };
    parallel_for(parallel, tasks * most, blocks_per_piece, [&](int64_t begin, int64_t end, int32_t which) {
        Worker *worker = &workers_[which];
        for (int64_t piece = begin; piece < end; ++piece) {
            const int64_t i = piece % most;
            const Task task = task_at(batch, out, piece / most, 1);
            if (i >= selection_.count(task.first, task.kv_head)) continue;
            prepare(kernels, batch, task, worker);
            const int32_t *block = selection_.blocks(task.first, task.kv_head) + i;
            const bool more = i + 1 < selection_.count(task.first, task.kv_head);
            attend(kernels, batch, task, 0, 1, *block, more ? block[1] : *block, worker,
                   part_at(task.index, i));
        }
    });
    parallel_for(parallel, tasks, 1, [&](int64_t begin, int64_t end, int32_t which) {
        const AttentionState &state = workers_[which].state;
        for (int64_t index = begin; index < end; ++index) {
            const Task task = task_at(batch, out, index, 1);
            clear(state, group_, head_dim_);
            for (int64_t i = 0; i < selection_.count(task.first, task.kv_head); ++i) {
                kernels.merge(part_at(index, i), int(group_), head_dim_, state);
            }
            finish(kernels, batch.cache.shape, state, group_, task.outputs);
        }
    });
}

int64_t SparseAttention::sparse_tokens(const Sequence &sequence) const {
    int64_t count = 0;
    for (int64_t token = 0; token < sequence.n; ++token) count += is_sparse(sequence.rows_of(token));
    return count;
}

void SparseAttention::run(const edge_parallel &parallel, const Kernels &kernels, Attention &dense,
                          int64_t layer, const float *queries, float *out, int64_t stride,
                          const Sequence *sequences, int64_t count) {
    int64_t dense_count = 0;
    for (int64_t i = 0; i < count; ++i) {
        Sequence some = sequences[i];
        const int64_t sparse = sparse_tokens(some);
        if (sparse == some.n) continue;
        // In a tree, dense and sparse tokens are mixed; the latter are then computed again.
        if (!some.tree) some.n -= sparse;
        dense_[dense_count++] = some;
    }
    if (dense_count > 0) dense.run(parallel, kernels, layer, queries, out, stride, dense_, dense_count);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t first = sequences[i].first * stride;
        run_sequence(parallel, kernels, layer, queries + first, out + first, stride, sequences[i]);
    }
}

void SparseAttention::run_sequence(const edge_parallel &parallel, const Kernels &kernels, int64_t layer,
                                   const float *queries, float *out, int64_t stride,
                                   const Sequence &sequence) {
    const CacheView &cache = *sequence.cache;
    query_count_ = 0;
    for (int64_t token = 0; token < sequence.n; ++token) {
        const int64_t rows = sequence.rows_of(token);
        if (is_sparse(rows)) queries_[query_count_++] = {token, rows};
    }
    const int64_t sparse = query_count_;
    if (sparse == 0) return;
    cache.summaries->update(parallel, kernels, cache, layer,
                            sequence.tree ? sequence.past : sequence.past + sequence.n);
    const SparseBatch batch{cache, layer, sequence.past, queries, stride, sequence.tree, queries_, sparse};
    selection_.run(parallel, kernels, batch);

    for (int64_t i = 0; i < worker_count_; ++i) workers_[i].prepared = -1;
    if (sparse <= split_tokens && sparse * kv_heads_ < tasks_per_worker * parallel.workers) {
        return run_split(parallel, kernels, batch, out);
    }
    const int64_t tasks = kv_heads_ * ((sparse + tokens_per_tile_ - 1) / tokens_per_tile_);
    parallel_for(parallel, tasks, 1, [&](int64_t begin, int64_t end, int32_t worker) {
        for (int64_t index = begin; index < end; ++index) {
            walk(kernels, batch, task_at(batch, out, index, tokens_per_tile_), &workers_[worker]);
        }
    });
}

void SparseAttention::finish_batch(const Sequence &sequence) const {
    // Without sparse queries nobody has looked at the summaries.
    if (sparse_tokens(sequence) == 0) return;
    const int64_t rows = sequence.tree ? sequence.past : sequence.past + sequence.n;
    sequence.cache->summaries->rows = std::max(sequence.cache->summaries->rows, rows);
}

SparseWork SparseAttention::work(const Sequence &sequence) const {
    const int64_t most = (sparse_.topk + sparse_.window_size / sparse_.block_size) * sparse_.block_size;
    SparseWork work{0, 0};
    int64_t furthest = 0;
    for (int64_t token = 0; token < sequence.n; ++token) {
        const int64_t rows = sequence.rows_of(token);
        const int64_t seen = is_sparse(rows) ? std::min(rows, most) : rows;
        work.positions += seen;
        work.pairs +=
            seen + (is_sparse(rows) ? rows / sparse_.kernel_stride / 2 : 0);  // a window has no value
        if (is_sparse(rows)) furthest = std::max(furthest, rows);
    }
    work.positions =
        std::min(sequence.past + sequence.n, work.positions) + furthest / sparse_.kernel_stride / 2;
    return work;
}

void SparseAttention::copy_selections(int64_t n, int64_t width, int32_t *selected) const {
    std::fill_n(selected, n * kv_heads_ * width, -1);
    for (int64_t i = 0; i < query_count_; ++i) {
        for (int64_t head = 0; head < kv_heads_; ++head) {
            std::copy_n(selection_.blocks(i, head), selection_.count(i, head),
                        selected + (queries_[i].token * kv_heads_ + head) * width);
        }
    }
}

}  // namespace edge
