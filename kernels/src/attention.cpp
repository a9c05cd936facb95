#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace edge {
namespace {

constexpr int most_rows = 32;            // query rows of one task: they share the conversion of the keys
constexpr int64_t split_tokens = 4;      // batches up to this size may split the context over threads
constexpr int64_t tasks_per_worker = 4;  // with fewer row tasks than this, split the context

int64_t chunks_of(int64_t positions) { return (positions + attention_chunk - 1) / attention_chunk; }

// maxima, sums and outputs of `rows` rows, side by side.
int64_t state_floats(int64_t rows, int64_t head_dim) { return rows * (head_dim + 2); }

AttentionState state_at(float *base, int64_t rows) { return {base, base + rows, base + 2 * rows}; }

void clear(const AttentionState &state, int64_t rows, int64_t head_dim) {
    std::fill_n(state.maxima, rows, -INFINITY);
    std::fill_n(state.sums, rows, 0.0f);
    std::fill_n(state.outputs, rows * head_dim, 0.0f);
}

}  // namespace

// Row r of a KV head is query head r % group of token r / group.
struct Attention::Rows {
    int count = 0;
    const float *queries[most_rows];
    float *outputs[most_rows];
    int64_t limits[most_rows];
    uint64_t masks[most_rows];

    Rows(const Attention &attention, const float *in, float *out, int64_t stride, int64_t kv_head,
         int64_t first, int64_t last, int64_t past, int64_t n, const uint64_t *tree) {
        for (int64_t row = first; row < last; ++row, ++count) {
            const int64_t token = row / attention.group,
                          head = kv_head * attention.group + row % attention.group;
            const int64_t at = token * stride + head * attention.head_dim;
            queries[count] = in + at;
            outputs[count] = out + at;
            limits[count] = tree ? past + n : past + token + 1;
            masks[count] = tree ? tree[token] : 0;
        }
    }

    int64_t furthest() const { return *std::max_element(limits, limits + count); }

    // outputs = state, normalised
    void finish(const AttentionState &state, int64_t head_dim) const {
        for (int r = 0; r < count; ++r) {
            for (int64_t d = 0; d < head_dim; ++d)
                outputs[r][d] = state.outputs[r * head_dim + d] / state.sums[r];
        }
    }
};

Attention::Attention(const CacheShape &shape, int64_t heads_, int64_t max_tokens, int32_t workers)
    : heads(heads_),
      kv_heads(shape.kv_heads),
      head_dim(shape.head_dim),
      group(heads_ / shape.kv_heads),
      worker_floats(round_up(attention_chunk * shape.head_dim + most_rows * attention_chunk +
                                 2 * state_floats(most_rows, shape.head_dim),
                             16)),
      all_worker_floats(worker_floats * workers),
      worker_scratch(new float[size_t(all_worker_floats)]),
      split_floats(chunks_of(shape.capacity) *
                   state_floats(heads_ * std::min(split_tokens, max_tokens), head_dim)),
      split_scratch(new float[size_t(split_floats)]) {}

uint64_t Attention::bytes() const { return uint64_t(split_floats + all_worker_floats) * sizeof(float); }

void Attention::run(const edge_parallel &parallel, const Kernels &kernels, const edge_cache &cache,
                    int64_t layer, const float *queries, float *out, int64_t stride, int64_t n, int64_t past,
                    const uint64_t *tree) {
    const int64_t rows = n * group, tiles = (rows + most_rows - 1) / most_rows, chunks = chunks_of(past + n);
    const float scale = 1.0f / std::sqrt(float(head_dim));

    const auto attend_chunk = [&](const Rows &task, int64_t kv_head, int64_t chunk, int32_t worker,
                                  const AttentionState &part) {
        float *scratch = worker_scratch.get() + worker * worker_floats;
        AttentionChunk c;
        c.keys = cache.keys(layer, kv_head);
        c.values = cache.values(layer, kv_head);
        c.half = cache.shape.type == EDGE_KV_F16;
        c.head_dim = head_dim;
        c.begin = chunk * attention_chunk;
        c.end = std::min(c.begin + attention_chunk, past + n);
        c.scale = scale;
        c.rows = task.count;
        c.queries = task.queries;
        c.limits = task.limits;
        c.masks = tree ? task.masks : nullptr;
        c.tree_start = past;
        c.key_scratch = scratch;
        c.score_scratch = scratch + attention_chunk * head_dim;
        kernels.attend(c, part);
    };
    const auto rows_of = [&](int64_t kv_head, int64_t tile) {
        return Rows(*this, queries, out, stride, kv_head, tile * most_rows,
                    std::min(rows, (tile + 1) * most_rows), past, n, tree);
    };

    if (n <= split_tokens && chunks > 1 && kv_heads * tiles < tasks_per_worker * parallel.workers) {
        const int64_t tasks = kv_heads * tiles;
        const auto part_at = [&](int64_t task, int64_t chunk, const Rows &task_rows) {
            const int64_t rows_before = task / tiles * rows + task % tiles * most_rows;
            const int64_t row_chunks = rows_before * chunks + chunk * task_rows.count;
            return state_at(split_scratch.get() + state_floats(row_chunks, head_dim), task_rows.count);
        };
        parallel_for(parallel, tasks * chunks, 1, [&](int64_t begin, int64_t end, int32_t worker) {
            for (int64_t index = begin; index < end; ++index) {
                const int64_t task = index / chunks, chunk = index % chunks;
                const Rows task_rows = rows_of(task / tiles, task % tiles);
                attend_chunk(task_rows, task / tiles, chunk, worker, part_at(task, chunk, task_rows));
            }
        });
        parallel_for(parallel, tasks, 1, [&](int64_t begin, int64_t end, int32_t worker) {
            for (int64_t task = begin; task < end; ++task) {
                const Rows task_rows = rows_of(task / tiles, task % tiles);
                const AttentionState state = scratch_state(worker, 1);
                clear(state, task_rows.count, head_dim);
                for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                    kernels.merge(part_at(task, chunk, task_rows), task_rows.count, head_dim, state);
                }
                task_rows.finish(state, head_dim);
            }
        });
        return;
    }

    parallel_for(parallel, kv_heads * tiles, 1, [&](int64_t begin, int64_t end, int32_t worker) {
        for (int64_t task = begin; task < end; ++task) {
            const Rows task_rows = rows_of(task / tiles, task % tiles);
            const AttentionState part = scratch_state(worker, 0), state = scratch_state(worker, 1);
            clear(state, task_rows.count, head_dim);
            for (int64_t chunk = 0; chunk < chunks_of(task_rows.furthest()); ++chunk) {
                attend_chunk(task_rows, task / tiles, chunk, worker, part);
                kernels.merge(part, task_rows.count, head_dim, state);
            }
            task_rows.finish(state, head_dim);
        }
    });
}

AttentionState Attention::scratch_state(int32_t worker, int which) {
    float *base = worker_scratch.get() + worker * worker_floats + attention_chunk * head_dim +
                  most_rows * attention_chunk + which * state_floats(most_rows, head_dim);
    return state_at(base, most_rows);
}

}  // namespace edge
