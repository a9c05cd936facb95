// Cuts a batch into tasks of query rows and chunks of positions, runs them on all threads and merges the parts.
#include "attention/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "memory/aligned.h"

namespace edge {
namespace {

constexpr int most_task_rows = 128;  // query rows of one task: they share the conversion of keys and values
constexpr int row_tile = 8;          // of which the kernels take so many at once
constexpr int64_t split_tokens = 4;  // batches up to this size may split the context over threads
constexpr int64_t tasks_per_worker = 4;  // with fewer row tasks than this, split the context

int64_t chunks_of(int64_t positions) { return (positions + attention_chunk - 1) / attention_chunk; }

}  // namespace

uint64_t place_attention_scratch(uint8_t *memory, int64_t head_dim, int64_t rows, AttentionScratch *scratch) {
    uint64_t bytes = 0;
    place(memory, &bytes, rows * head_dim, &scratch->queries);
    place(memory, &bytes, rows * head_dim, &scratch->query_codes);
    place(memory, &bytes, rows, &scratch->query_scales);
    place(memory, &bytes, attention_chunk * head_dim, &scratch->tile);
    place(memory, &bytes, rows * attention_chunk, &scratch->scores);
    place(memory, &bytes, rows * attention_chunk, &scratch->weight_codes);
    place(memory, &bytes, rows * attention_blocks, &scratch->weight_scales);
    return bytes;
}

void clear(const AttentionState &state, int64_t rows, int64_t head_dim) {
    std::fill_n(state.maxima, rows, -INFINITY);
    std::fill_n(state.sums, rows, 0.0f);
    std::fill_n(state.outputs, rows * head_dim, 0.0f);
}

void finish(const Kernels &kernels, const CacheShape &shape, const AttentionState &state, int64_t rows,
            float *const *outputs) {
    const int64_t dim = shape.head_dim;
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t d = 0; d < dim; ++d) outputs[r][d] = state.outputs[r * dim + d] / state.sums[r];
        if (shape.type == EDGE_KV_INT4) kernels.rotate(outputs[r], dim);
    }
}

// Row r of a KV head is query head r % group of token r / group.
struct Attention::Task {
    int64_t kv_head;
    int count = 0;
    const float *queries[most_task_rows];
    float *outputs[most_task_rows];
    int64_t limits[most_task_rows];
    uint64_t masks[most_task_rows];

    Task(const Attention &attention, const float *in, float *out, int64_t stride, int64_t head_of_cache,
         int64_t first, int64_t last, int64_t past, int64_t n, const uint64_t *tree)
        : kv_head(head_of_cache) {
        for (int64_t row = first; row < last; ++row, ++count) {
            const int64_t token = row / attention.group_,
                          head = kv_head * attention.group_ + row % attention.group_;
            const int64_t at = token * stride + head * attention.head_dim_;
            queries[count] = in + at;
            outputs[count] = out + at;
            limits[count] = tree ? past + n : past + token + 1;
            masks[count] = tree ? tree[token] : 0;
        }
    }

    int64_t furthest() const { return *std::max_element(limits, limits + count); }
};

Attention::Attention(const CacheShape &shape, int64_t heads, int64_t max_tokens, int32_t workers)
    : heads_(heads),
      kv_heads_(shape.kv_heads),
      head_dim_(shape.head_dim),
      group_(heads / shape.kv_heads),
      most_rows_(std::min<int64_t>(most_task_rows, round_up(max_tokens * group_, row_tile))),
      worker_count_(workers),
      split_floats_(chunks_of(shape.capacity) *
                    state_floats(heads * std::min(split_tokens, max_tokens), head_dim_)),
      bytes_(lay_out(nullptr)) {}

uint64_t Attention::lay_out(uint8_t *memory) {
    uint64_t bytes = 0;
    edge::place(memory, &bytes, worker_count_, &workers_);
    for (int64_t i = 0; i < worker_count_; ++i) {
        Worker unused, &worker = memory ? workers_[i] : unused;
        bytes += place_attention_scratch(memory ? memory + bytes : nullptr, head_dim_, most_rows_,
                                         &worker.scratch);
        for (AttentionState *state : {&worker.part, &worker.state}) {
            float *floats;
            edge::place(memory, &bytes, state_floats(most_rows_, head_dim_), &floats);
            if (memory) *state = state_at(floats, most_rows_);
        }
    }
    edge::place(memory, &bytes, split_floats_, &split_scratch_);
    return bytes;
}

void Attention::run(const edge_parallel &parallel, const Kernels &kernels, const CacheView &cache,
                    int64_t layer, const float *queries, float *out, int64_t stride, int64_t n, int64_t past,
                    const uint64_t *tree) {
    const int64_t rows = n * group_, end = past + n, chunks = chunks_of(end);
    const bool split = n <= split_tokens && chunks > 1 && kv_heads_ < tasks_per_worker * parallel.workers;
    const int64_t wanted = rows * kv_heads_ / (tasks_per_worker * parallel.workers);
    const int64_t task_rows =
        std::min(most_rows_, split ? rows : std::max<int64_t>(round_up(wanted, row_tile), row_tile));
    const int64_t tiles = (rows + task_rows - 1) / task_rows, tasks = kv_heads_ * tiles;
    for (int64_t i = 0; i < worker_count_; ++i) workers_[i].prepared = -1;

    const auto task_at = [&](int64_t index) {
        const int64_t first = index % tiles * task_rows;
        return Task(*this, queries, out, stride, index / tiles, first, std::min(rows, first + task_rows),
                    past, n, tree);
    };
    const auto attend_chunk = [&](const Task &task, int64_t index, int64_t chunk, Worker *worker,
                                  const AttentionState &part) {
        AttentionRows r;
        r.type = cache.shape.type;
        r.head_dim = head_dim_;
        r.scale = 1.0f / std::sqrt(float(head_dim_));
        r.count = task.count;
        r.queries = task.queries;
        r.limits = task.limits;
        r.masks = tree ? task.masks : nullptr;
        r.tree_start = past;
        r.scratch = worker->scratch;
        if (worker->prepared != index) kernels.prepare_queries(r);
        worker->prepared = index;
        AttentionChunk c;
        const int64_t begin = chunk * attention_chunk;
        c.blocks = 0;
        for (int64_t at = begin; at < std::min(begin + attention_chunk, end); at += attention_block) {
            c.keys[c.blocks] = cache.keys(layer, task.kv_head, at);
            c.values[c.blocks] = cache.values(layer, task.kv_head, at);
            c.starts[c.blocks++] = at;
        }
        for (int b = 0; b < attention_blocks; ++b) {
            const int64_t at = begin + attention_chunk + b * attention_block;
            c.next[b] = at < end ? cache.keys(layer, task.kv_head, at) : c.keys[0];
        }
        kernels.attend(r, c, part);
    };

    if (split) {
        const auto part_at = [&](int64_t index, int64_t chunk, const Task &task) {
            const int64_t rows_before = index / tiles * rows + index % tiles * task_rows;
            const int64_t row_chunks = rows_before * chunks + chunk * task.count;
            return state_at(split_scratch_ + state_floats(row_chunks, head_dim_), task.count);
        };
        parallel_for(parallel, tasks * chunks, 1, [&](int64_t first, int64_t last, int32_t worker) {
            for (int64_t piece = first; piece < last; ++piece) {
                const int64_t index = piece / chunks, chunk = piece % chunks;
                const Task task = task_at(index);
                attend_chunk(task, index, chunk, &workers_[worker], part_at(index, chunk, task));
            }
        });
        parallel_for(parallel, tasks, 1, [&](int64_t first, int64_t last, int32_t worker) {
            for (int64_t index = first; index < last; ++index) {
                const Task task = task_at(index);
                const AttentionState state = workers_[worker].state;
                clear(state, task.count, head_dim_);
                for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                    kernels.merge(part_at(index, chunk, task), task.count, head_dim_, state);
                }
                finish(kernels, cache.shape, state, task.count, task.outputs);
            }
        });
        return;
    }

    parallel_for(parallel, tasks, 1, [&](int64_t first, int64_t last, int32_t worker) {
        Worker *mine = &workers_[worker];
        for (int64_t index = first; index < last; ++index) {
            const Task task = task_at(index);
            clear(mine->state, task.count, head_dim_);
            for (int64_t chunk = 0; chunk < chunks_of(task.furthest()); ++chunk) {
                attend_chunk(task, index, chunk, mine, mine->part);
                kernels.merge(mine->part, task.count, head_dim_, mine->state);
            }
            finish(kernels, cache.shape, mine->state, task.count, task.outputs);
        }
    });
}

}  // namespace edge
