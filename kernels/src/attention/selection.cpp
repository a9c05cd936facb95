// Scores windows of keys, pools them to blocks and picks the best, for many queries at once or one over all threads.
#include "attention/selection.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "memory/aligned.h"

namespace edge {
namespace {

constexpr int64_t most_tile_rows = 64;  // query rows that share the conversion of summaries
constexpr int64_t chunk_windows = attention_chunk;
constexpr int64_t nowhere = INT64_MAX;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Merges the maximum and the sum of powers of one chunk into those of the chunks before it.
void merge_normaliser(float maximum, float sum, float *into_maximum, float *into_sum) {
    const float highest = std::max(maximum, *into_maximum);
    *into_sum = *into_sum * std::exp2(*into_maximum - highest) + sum * std::exp2(maximum - highest);
    *into_maximum = highest;
}

int64_t count_at_least(const int32_t *values, int64_t count, int32_t threshold) {
    int32_t found = 0;
    for (int64_t i = 0; i < count; ++i) found += values[i] >= threshold;
    return found;
}

// The k-th largest of non-negative values.
int32_t kth_largest(const int32_t *values, int64_t count, int64_t k) {
    int32_t threshold = 0;
    for (int32_t bit = 1 << 30; bit != 0; bit >>= 1) {
        if (count_at_least(values, count, threshold | bit) >= k) threshold |= bit;
    }
    return threshold;
}

}  // namespace

// What one thread works with.
struct BlockSelection::Worker {
    AttentionScratch scratch;
    float *maxima, *sums;  // the normalisers, [row]
    float *scores;         // [token][window]
    int32_t *pooled;       // [block]
    uint8_t *path_memory, *own_memory;
    PathBlocks path;
    int64_t own_start[2];  // the first block of each level that a tree's path has for itself
    int64_t prepared;      // the task whose queries are in the scratch memory

    uint8_t *own_block(const SummaryShape &shape, SummaryLevel level, int64_t index) const {
        const int64_t place = 2 * int64_t(level) + index - own_start[int(level)];
        return own_memory + place * shape.block_bytes();
    }
};

// Some consecutive queries of one KV head.
struct BlockSelection::Task {
    int64_t index, kv_head, first, tokens;
    const float *rows[most_tile_rows];
    int64_t fine[most_tile_rows];         // complete windows, per token
    int64_t normalisers[most_tile_rows];  // windows that the normaliser sums over
    SummaryLevel levels[most_tile_rows];  // and which

    int64_t normaliser(int64_t token, SummaryLevel level) const {
        return levels[token] == level ? normalisers[token] : 0;
    }
    int64_t most_normaliser(SummaryLevel level) const {
        int64_t most = 0;
        for (int64_t t = 0; t < tokens; ++t) most = std::max(most, normaliser(t, level));
        return most;
    }
    int64_t most_fine() const { return *std::max_element(fine, fine + tokens); }
};

BlockSelection::BlockSelection(const CacheShape &shape, const edge_sparse &sparse, int64_t heads,
                               int64_t max_tokens, int32_t workers)
    : most_blocks(std::min<int64_t>(sparse.topk + sparse.window_size / sparse.block_size,
                                    ceil_div(shape.capacity, sparse.block_size))),
      sparse_(sparse),
      summaries_(shape, sparse),
      heads_(heads),
      kv_heads_(shape.kv_heads),
      head_dim_(shape.head_dim),
      group_(heads / shape.kv_heads),
      max_tokens_(max_tokens),
      worker_count_(workers),
      tokens_per_tile_(std::max<int64_t>(1, most_tile_rows / group_)),
      window_capacity_(round_up(summaries_.fine.complete(shape.capacity) + 1, chunk_windows)),
      block_capacity_(ceil_div(shape.capacity, sparse.block_size)),
      path_bytes_(PathBlocks::bytes(shape)),
      bytes_(lay_out(nullptr)) {}

uint64_t BlockSelection::lay_out(uint8_t *memory) {
    uint64_t bytes = 0;
    edge::place(memory, &bytes, max_tokens_ * kv_heads_ * most_blocks, &blocks_);
    edge::place(memory, &bytes, max_tokens_ * kv_heads_, &counts_);
    edge::place(memory, &bytes, 2 * worker_count_ * group_ * (window_capacity_ / chunk_windows), &parts_);
    edge::place(memory, &bytes, worker_count_, &workers_);
    const int64_t rows = tokens_per_tile_ * group_;
    for (int64_t i = 0; i < worker_count_; ++i) {
        Worker unused, &worker = memory ? workers_[i] : unused;
        bytes += place_attention_scratch(memory ? memory + bytes : nullptr, head_dim_, rows, &worker.scratch);
        edge::place(memory, &bytes, rows, &worker.maxima);
        edge::place(memory, &bytes, rows, &worker.sums);
        edge::place(memory, &bytes, tokens_per_tile_ * window_capacity_, &worker.scores);
        edge::place(memory, &bytes, block_capacity_, &worker.pooled);
        edge::place(memory, &bytes, path_bytes_, &worker.path_memory);
        edge::place(memory, &bytes, 4 * summaries_.block_bytes(), &worker.own_memory);
    }
    return bytes;
}

BlockSelection::Task BlockSelection::task_at(const SparseBatch &batch, int64_t index,
                                             int64_t tile_tokens) const {
    const int64_t tiles = ceil_div(batch.count, tile_tokens);
    Task task;
    task.index = index;
    task.kv_head = index / tiles;
    task.first = index % tiles * tile_tokens;
    task.tokens = std::min(tile_tokens, batch.count - task.first);
    for (int64_t t = 0; t < task.tokens; ++t) {
        const SparseQuery &query = batch.list[task.first + t];
        const float *heads_of_group =
            batch.queries + query.token * batch.stride + task.kv_head * group_ * head_dim_;
        for (int64_t h = 0; h < group_; ++h) task.rows[t * group_ + h] = heads_of_group + h * head_dim_;
        const int64_t coarse = summaries_.coarse.complete(query.rows);
        task.fine[t] = summaries_.fine.complete(query.rows);
        task.levels[t] = sparse_.exact_lse || coarse == 0 ? SummaryLevel::fine : SummaryLevel::coarse;
        task.normalisers[t] = task.levels[t] == SummaryLevel::fine ? task.fine[t] : coarse;
    }
    return task;
}

// Brings a task's queries into the scratch memory, and computes the windows that end on a tree's path.
void BlockSelection::prepare(const Kernels &kernels, const SparseBatch &batch, const Task &task,
                             Worker *worker) const {
    if (worker->prepared == task.index) return;
    worker->prepared = task.index;
    kernels.prepare_queries(rows_of(task, *worker));
    worker->own_start[0] = worker->own_start[1] = nowhere;
    if (batch.tree == nullptr) return;
    const SparseQuery &query = batch.list[task.first];
    worker->path.build(batch.cache, batch.layer, task.kv_head, batch.past, batch.tree[query.token],
                       worker->path_memory);
    for (const SummaryLevel level : summary_levels) {
        const WindowGrid &grid = summaries_.grid(level);
        const int64_t first = grid.complete(batch.past), end = grid.complete(query.rows);
        if (end == first) continue;
        const int64_t own = worker->own_start[int(level)] = first / attention_block;
        if (first % attention_block != 0) {
            std::memcpy(worker->own_block(summaries_, level, own),
                        batch.cache.summaries->block(batch.layer, task.kv_head, level, first),
                        size_t(summaries_.block_bytes()));
        }
        for (int64_t window = first; window < end; ++window) {
            summarise(
                kernels, summaries_, batch.cache.shape.type, grid, window,
                [&](int64_t position) {
                    return position >= worker->path.start()
                               ? worker->path.keys(position)
                               : batch.cache.keys(batch.layer, task.kv_head, position);
                },
                worker->own_block(summaries_, level, window / attention_block));
        }
    }
}

AttentionRows BlockSelection::rows_of(const Task &task, const Worker &worker) const {
    AttentionRows rows{};
    rows.type = summaries_.type;
    rows.head_dim = head_dim_;
    rows.scale = 1.0f / std::sqrt(float(head_dim_));
    rows.count = int(task.tokens * group_);
    rows.queries = task.rows;
    rows.scratch = worker.scratch;
    return rows;
}

// Scores of the task's rows with the windows of a chunk below `end`.
void BlockSelection::score_chunk(const Kernels &kernels, const SparseBatch &batch, const Task &task,
                                 SummaryLevel level, int64_t chunk, int64_t end, const Worker &worker) const {
    const AttentionRows rows = rows_of(task, worker);
    const int64_t begin = chunk * chunk_windows;
    const auto block_at = [&](int64_t window) -> const uint8_t * {
        const int64_t index = window / attention_block;
        if (index >= worker.own_start[int(level)]) return worker.own_block(summaries_, level, index);
        return batch.cache.summaries->block(batch.layer, task.kv_head, level, window);
    };
    const int64_t last = std::min(begin + chunk_windows, end);
    for (int64_t at = begin; at < last; at += attention_block) {
        const uint8_t *next = block_at(at + attention_block < end ? at + attention_block : at);
        kernels.score_windows(rows, block_at(at), next, worker.scratch.scores + at - begin);
    }
}

// Adds the weights of a chunk's windows, over the heads of a token, to its scores.
void BlockSelection::add_chunk_weights(const Kernels &kernels, const Task &task, int64_t token, int64_t chunk,
                                       const Worker &worker, const float *maxima, const float *sums,
                                       float *scores) const {
    const int64_t begin = chunk * chunk_windows, count = std::min(chunk_windows, task.fine[token] - begin);
    if (count <= 0) return;
    std::fill_n(scores + begin, chunk_windows, 0.0f);
    for (int64_t row = token * group_; row < (token + 1) * group_; ++row) {
        kernels.add_weights(worker.scratch.scores + row * attention_chunk, count, maxima[row],
                            1.0f / sums[row], scores + begin);
    }
}

void BlockSelection::run(const edge_parallel &parallel, const Kernels &kernels, const SparseBatch &batch) {
    for (int64_t i = 0; i < worker_count_; ++i) workers_[i].prepared = -1;
    // A tree's tokens have windows of their own, so each is a task, and its pieces stay with one thread.
    if (batch.tree == nullptr && batch.count * kv_heads_ < parallel.workers) {
        return run_split(parallel, kernels, batch);
    }
    const int64_t tile_tokens = batch.tree ? 1 : tokens_per_tile_;
    const int64_t tasks = kv_heads_ * ceil_div(batch.count, tile_tokens);
    parallel_for(parallel, tasks, 1, [&](int64_t begin, int64_t end, int32_t worker) {
        for (int64_t index = begin; index < end; ++index) {
            run_task(kernels, batch, task_at(batch, index, tile_tokens), &workers_[worker]);
        }
    });
}

void BlockSelection::run_task(const Kernels &kernels, const SparseBatch &batch, const Task &task,
                              Worker *worker) {
    prepare(kernels, batch, task, worker);
    std::fill_n(worker->maxima, task.tokens * group_, -INFINITY);
    std::fill_n(worker->sums, task.tokens * group_, 0.0f);
    for (const SummaryLevel level : summary_levels) {
        const int64_t most = task.most_normaliser(level);
        for (int64_t chunk = 0; chunk < ceil_div(most, chunk_windows); ++chunk) {
            score_chunk(kernels, batch, task, level, chunk, most, *worker);
            for (int64_t row = 0; row < task.tokens * group_; ++row) {
                const int64_t left = task.normaliser(row / group_, level) - chunk * chunk_windows;
                if (left <= 0) continue;
                float maximum, sum;
                kernels.sum_powers(worker->scratch.scores + row * attention_chunk,
                                   std::min(left, chunk_windows), &maximum, &sum);
                merge_normaliser(maximum, sum, worker->maxima + row, worker->sums + row);
            }
        }
    }
    const int64_t most = task.most_fine();
    for (int64_t chunk = 0; chunk < ceil_div(most, chunk_windows); ++chunk) {
        score_chunk(kernels, batch, task, SummaryLevel::fine, chunk, most, *worker);
        for (int64_t t = 0; t < task.tokens; ++t) {
            add_chunk_weights(kernels, task, t, chunk, *worker, worker->maxima, worker->sums,
                              worker->scores + t * window_capacity_);
        }
    }
    for (int64_t t = 0; t < task.tokens; ++t) {
        choose(batch, task, t, worker->scores + t * window_capacity_, worker->pooled);
    }
}

// The same with the windows of a task over all threads: a few queries over a long context. Tasks are fewer than
// workers, so results of a task lie in the worker of its number.
void BlockSelection::run_split(const edge_parallel &parallel, const Kernels &kernels,
                               const SparseBatch &batch) {
    const int64_t tasks = batch.count * kv_heads_, most_chunks = window_capacity_ / chunk_windows;
    const auto part = [&](int64_t task, int64_t chunk) {
        return parts_ + 2 * group_ * (task * most_chunks + chunk);
    };
    int64_t sum_chunks = 0, weight_chunks = 0;
    for (int64_t index = 0; index < tasks; ++index) {
        const Task task = task_at(batch, index, 1);
        sum_chunks = std::max(sum_chunks, ceil_div(task.normalisers[0], chunk_windows));
        weight_chunks = std::max(weight_chunks, ceil_div(task.fine[0], chunk_windows));
    }
    parallel_for(parallel, tasks * sum_chunks, 1, [&](int64_t begin, int64_t end, int32_t which) {
        Worker *worker = &workers_[which];
        for (int64_t piece = begin; piece < end; ++piece) {
            const Task task = task_at(batch, piece / sum_chunks, 1);
            const int64_t chunk = piece % sum_chunks, left = task.normalisers[0] - chunk * chunk_windows;
            if (left <= 0) continue;
            prepare(kernels, batch, task, worker);
            score_chunk(kernels, batch, task, task.levels[0], chunk, task.normalisers[0], *worker);
            for (int64_t row = 0; row < group_; ++row) {
                float *into = part(task.index, chunk) + 2 * row;
                kernels.sum_powers(worker->scratch.scores + row * attention_chunk,
                                   std::min(left, chunk_windows), into, into + 1);
            }
        }
    });
    for (int64_t index = 0; index < tasks; ++index) {
        const Task task = task_at(batch, index, 1);
        const Worker &result = workers_[index];
        for (int64_t row = 0; row < group_; ++row) {
            result.maxima[row] = -INFINITY;
            result.sums[row] = 0.0f;
            for (int64_t chunk = 0; chunk < ceil_div(task.normalisers[0], chunk_windows); ++chunk) {
                const float *from = part(index, chunk) + 2 * row;
                merge_normaliser(from[0], from[1], result.maxima + row, result.sums + row);
            }
        }
    }
    parallel_for(parallel, tasks * weight_chunks, 1, [&](int64_t begin, int64_t end, int32_t which) {
        Worker *worker = &workers_[which];
        for (int64_t piece = begin; piece < end; ++piece) {
            const Task task = task_at(batch, piece / weight_chunks, 1);
            const int64_t chunk = piece % weight_chunks;
            if (task.fine[0] <= chunk * chunk_windows) continue;
            prepare(kernels, batch, task, worker);
            score_chunk(kernels, batch, task, SummaryLevel::fine, chunk, task.fine[0], *worker);
            const Worker &result = workers_[task.index];
            add_chunk_weights(kernels, task, 0, chunk, *worker, result.maxima, result.sums, result.scores);
        }
    });
    parallel_for(parallel, tasks, 1, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t index = begin; index < end; ++index) {
            const Worker &result = workers_[index];
            choose(batch, task_at(batch, index, 1), 0, result.scores, result.pooled);
        }
    });
}

// The first blocks, the best ones between, and the local ones; of equal scores the lower id comes first.
void BlockSelection::choose(const SparseBatch &batch, const Task &task, int64_t token, const float *scores,
                            int32_t *pooled) {
    const int64_t query = task.first + token, size = sparse_.block_size, windows = task.fine[token];
    const int64_t total = ceil_div(batch.list[query].rows, size);
    const int64_t local = std::max<int64_t>(0, total - sparse_.window_size / size);
    const int64_t first = std::min<int64_t>(sparse_.init_blocks, local), candidates = local - first;
    const int64_t wanted = std::min<int64_t>(sparse_.topk - sparse_.init_blocks, candidates);
    int32_t *out = blocks_ + (query * kv_heads_ + task.kv_head) * most_blocks;
    const int32_t *const start = out;
    for (int64_t block = 0; block < first; ++block) *out++ = int32_t(block);

    int32_t threshold = 0;
    int64_t ties = 0;
    if (wanted > 0) {
        // Windows overlap a block that start in it, or before it by less than their size.
        const int64_t starts = size / summaries_.fine.stride;
        const int64_t earlier = (summaries_.fine.size - 1) / summaries_.fine.stride;
        for (int64_t i = 0; i < candidates; ++i) {
            const int64_t before = std::max<int64_t>(0, (first + i) * starts - earlier);
            const int64_t after = std::min((first + i + 1) * starts, windows);
            float best = 0.0f;
            for (int64_t window = before; window < after; ++window) best = std::max(best, scores[window]);
            std::memcpy(pooled + i, &best, sizeof best);  // floats of one sign compare like their bits
        }
        threshold = kth_largest(pooled, candidates, wanted);
        ties = wanted - count_at_least(pooled, candidates, threshold + 1);
    }
    for (int64_t i = 0; i < candidates && wanted > 0; ++i) {
        if (pooled[i] > threshold || (pooled[i] == threshold && ties-- > 0)) *out++ = int32_t(first + i);
    }
    for (int64_t block = local; block < total; ++block) *out++ = int32_t(block);
    counts_[query * kv_heads_ + task.kv_head] = int32_t(out - start);
}

}  // namespace edge
