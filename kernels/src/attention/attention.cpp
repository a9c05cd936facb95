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
constexpr int64_t split_tokens = 4;  // batches up to this size may split their contexts over threads
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

struct Attention::Plan {
    const Sequence *sequence;
    int64_t rows, task_rows,
        tiles;  // query rows of a KV head: all of them, of one task; and the tasks that they are
    int64_t first_chunk, chunks;  // of positions: the first that a token sees, and how many from there on
    int64_t first_task, first_piece;
    float *parts;  // of its pieces, where contexts are split
};

struct Attention::Run {
    const Kernels &kernels;
    int64_t layer;
    const float *queries;
    float *out;
    int64_t stride;
    const Plan *plans;
    int64_t count, tasks = 0, pieces = 0;
    bool split = false;

    // The plan of a task, or with `first` = &Plan::first_piece of a piece: a task's chunk.
    const Plan &plan_of(int64_t index, int64_t Plan::*first) const {
        return *(std::upper_bound(plans, plans + count, index,
                                  [&](int64_t value, const Plan &plan) { return value < plan.*first; }) -
                 1);
    }
};

// Row r of a KV head is query head r % group of token r / group.
struct Attention::Task {
    const Plan &plan;
    int64_t index, kv_head, first;
    int count = 0;
    const float *queries[most_task_rows];
    float *outputs[most_task_rows];
    int64_t tokens[most_task_rows];
    int64_t starts[most_task_rows], limits[most_task_rows];  // a row sees what stands between

    Task(const Attention &attention, const Run &run, const Plan &plan_of_task, int64_t task)
        : plan(plan_of_task),
          index(task),
          kv_head((task - plan.first_task) / plan.tiles),
          first((task - plan.first_task) % plan.tiles * plan.task_rows) {
        const int64_t last = std::min(plan.rows, first + plan.task_rows);
        for (int64_t row = first; row < last; ++row, ++count) {
            const int64_t token = row / attention.group_,
                          head = kv_head * attention.group_ + row % attention.group_;
            const int64_t at = (plan.sequence->first + token) * run.stride + head * attention.head_dim_;
            queries[count] = run.queries + at;
            outputs[count] = run.out + at;
            tokens[count] = token;
            limits[count] = plan.sequence->rows_of(token);
            starts[count] = attention.start_of(limits[count]);
        }
    }

    int64_t furthest() const { return *std::max_element(limits, limits + count); }
};

Attention::Attention(const CacheShape &shape, int64_t heads, int64_t max_tokens, int32_t workers,
                     int64_t window)
    : heads_(heads),
      kv_heads_(shape.kv_heads),
      head_dim_(shape.head_dim),
      group_(heads / shape.kv_heads),
      max_tokens_(max_tokens),
      window_(window),
      most_rows_(std::min<int64_t>(most_task_rows, round_up(max_tokens * group_, row_tile))),
      worker_count_(workers),
      path_bytes_(PathBlocks::bytes(shape)),
      split_floats_(chunks_of(shape.capacity) *
                    state_floats(heads * std::min(split_tokens, max_tokens), head_dim_)),
      bytes_(lay_out(nullptr)) {}

uint64_t Attention::lay_out(uint8_t *memory) {
    uint64_t bytes = 0;
    edge::place(memory, &bytes, max_tokens_, &plans_);
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
        edge::place(memory, &bytes, path_bytes_, &worker.path_memory);
    }
    edge::place(memory, &bytes, split_floats_, &split_scratch_);
    return bytes;
}

void Attention::plan(const Sequence *sequences, int64_t count, int32_t workers, Run *run) {
    const int64_t least_tasks = tasks_per_worker * workers;
    int64_t tokens = 0, chunks = 0;
    for (int64_t i = 0; i < count; ++i) {
        tokens += sequences[i].n;
        const int64_t first = start_of(sequences[i].past + 1) / attention_chunk;
        chunks = std::max(chunks, chunks_of(sequences[i].furthest()) - first);
    }
    run->split = tokens <= split_tokens && chunks > 1 && count * kv_heads_ < least_tasks;
    const int64_t wanted =
        std::max<int64_t>(round_up(tokens * group_ * kv_heads_ / least_tasks, row_tile), row_tile);
    float *parts = split_scratch_;
    for (int64_t i = 0; i < count; ++i) {
        Plan &plan = plans_[i];
        plan.sequence = &sequences[i];
        plan.rows = sequences[i].n * group_;
        plan.task_rows = std::min(most_rows_, run->split ? plan.rows : wanted);
        plan.tiles = (plan.rows + plan.task_rows - 1) / plan.task_rows;
        plan.first_chunk = start_of(sequences[i].past + 1) / attention_chunk;
        plan.chunks = chunks_of(sequences[i].furthest()) - plan.first_chunk;
        plan.first_task = run->tasks;
        plan.first_piece = run->pieces;
        plan.parts = parts;
        run->tasks += kv_heads_ * plan.tiles;
        run->pieces += kv_heads_ * plan.tiles * plan.chunks;
        if (run->split) parts += state_floats(kv_heads_ * plan.rows * plan.chunks, head_dim_);
    }
}

// The part of one chunk for the rows of a task. A chunk that the tokens of a tree reach into is another one for each of
// them that does not see just the rows before it: it goes on with the tree's rows on the token's path.
void Attention::attend(const Run &run, const Task &task, int64_t chunk, Worker *worker,
                       const AttentionState &part) const {
    const Sequence &sequence = *task.plan.sequence;
    const CacheView &cache = *sequence.cache;
    const int64_t begin = chunk * attention_chunk;
    const bool has_paths = sequence.tree != nullptr && begin + attention_chunk > sequence.past;
    const auto path_of = [&](int row) { return has_paths && sequence.has_own_path(task.tokens[row]); };
    PathBlocks path;
    for (int first = 0, last; first < task.count; first = last) {
        const bool own_path = path_of(first);
        last = first + 1;
        while (last < task.count && (own_path ? task.tokens[last] == task.tokens[first] : !path_of(last))) {
            ++last;
        }
        const AttentionState rows_part{part.maxima + first, part.sums + first,
                                       part.outputs + first * head_dim_};
        const int64_t start = *std::min_element(task.starts + first, task.starts + last);
        const int64_t end = *std::max_element(task.limits + first, task.limits + last);
        if (end <= begin || start >= begin + attention_chunk) {
            clear(rows_part, last - first, head_dim_);
            continue;
        }
        AttentionRows rows;
        rows.type = cache.shape.type;
        rows.head_dim = head_dim_;
        rows.scale = 1.0f / std::sqrt(float(head_dim_));
        rows.count = last - first;
        rows.queries = task.queries + first;
        rows.starts = window_ > 0 ? task.starts + first : nullptr;
        rows.limits = task.limits + first;
        rows.scratch = worker->scratch;
        if (has_paths || worker->prepared != task.index) run.kernels.prepare_queries(rows);
        worker->prepared = has_paths ? -1 : task.index;
        if (own_path) {
            path.build(cache, run.layer, task.kv_head, sequence.past, sequence.tree[task.tokens[first]],
                       worker->path_memory);
        }
        AttentionChunk c;
        c.blocks = 0;
        const int64_t first_block = std::max(begin, start / attention_block * attention_block);
        for (int64_t at = first_block; at < std::min(begin + attention_chunk, end); at += attention_block) {
            const bool on_path = own_path && at >= path.start();
            c.keys[c.blocks] = on_path ? path.keys(at) : cache.keys(run.layer, task.kv_head, at);
            c.values[c.blocks] = on_path ? path.values(at) : cache.values(run.layer, task.kv_head, at);
            c.starts[c.blocks++] = at;
        }
        for (int b = 0; b < attention_blocks; ++b) {
            const int64_t at = begin + attention_chunk + b * attention_block;
            c.next[b] = at < end && !own_path ? cache.keys(run.layer, task.kv_head, at) : c.keys[0];
        }
        run.kernels.attend(rows, c, rows_part);
    }
}

// Merges what soft rows see before the sequence into their states, when all else is in them. part: room for one row.
void Attention::add_prefix(const Run &run, const Task &task, const AttentionState &part,
                           const AttentionState &state) const {
    const Sequence &sequence = *task.plan.sequence;
    if (sequence.prefix == nullptr) return;
    for (int row = 0; row < task.count; ++row) {
        if (task.tokens[row] < sequence.n - sequence.soft) continue;
        sequence.prefix->attend(run.layer, task.kv_head, task.queries[row], part);
        run.kernels.merge(part, 1, head_dim_,
                          {state.maxima + row, state.sums + row, state.outputs + row * head_dim_});
    }
}

// A few tokens: the chunks of their contexts are spread over all threads, then merged.
void Attention::run_split(const edge_parallel &parallel, const Run &run) {
    const auto part_at = [&](const Task &task, int64_t chunk) {
        const int64_t rows_before = task.kv_head * task.plan.rows + task.first;
        const int64_t row_chunks = rows_before * task.plan.chunks + chunk * task.count;
        return state_at(task.plan.parts + state_floats(row_chunks, head_dim_), task.count);
    };
    parallel_for(parallel, run.pieces, 1, [&](int64_t first, int64_t last, int32_t worker) {
        for (int64_t piece = first; piece < last; ++piece) {
            const Plan &plan = run.plan_of(piece, &Plan::first_piece);
            const int64_t index = plan.first_task + (piece - plan.first_piece) / plan.chunks,
                          chunk = (piece - plan.first_piece) % plan.chunks;
            const Task task(*this, run, plan, index);
            attend(run, task, plan.first_chunk + chunk, &workers_[worker], part_at(task, chunk));
        }
    });
    parallel_for(parallel, run.tasks, 1, [&](int64_t first, int64_t last, int32_t worker) {
        for (int64_t index = first; index < last; ++index) {
            const Task task(*this, run, run.plan_of(index, &Plan::first_task), index);
            const AttentionState state = workers_[worker].state;
            clear(state, task.count, head_dim_);
            for (int64_t chunk = 0; chunk < task.plan.chunks; ++chunk) {
                run.kernels.merge(part_at(task, chunk), task.count, head_dim_, state);
            }
            add_prefix(run, task, workers_[worker].part, state);
            finish(run.kernels, task.plan.sequence->cache->shape, state, task.count, task.outputs);
        }
    });
}

void Attention::run_whole(const edge_parallel &parallel, const Run &run) {
    parallel_for(parallel, run.tasks, 1, [&](int64_t first, int64_t last, int32_t worker) {
        Worker *mine = &workers_[worker];
        for (int64_t index = first; index < last; ++index) {
            const Task task(*this, run, run.plan_of(index, &Plan::first_task), index);
            clear(mine->state, task.count, head_dim_);
            for (int64_t chunk = task.plan.first_chunk; chunk < chunks_of(task.furthest()); ++chunk) {
                attend(run, task, chunk, mine, mine->part);
                run.kernels.merge(mine->part, task.count, head_dim_, mine->state);
            }
            add_prefix(run, task, mine->part, mine->state);
            finish(run.kernels, task.plan.sequence->cache->shape, mine->state, task.count, task.outputs);
        }
    });
}

void Attention::run(const edge_parallel &parallel, const Kernels &kernels, int64_t layer,
                    const float *queries, float *out, int64_t stride, const Sequence *sequences,
                    int64_t count) {
    Run run{kernels, layer, queries, out, stride, plans_, count};
    plan(sequences, count, parallel.workers, &run);
    for (int64_t i = 0; i < worker_count_; ++i) workers_[i].prepared = -1;
    if (run.split) return run_split(parallel, run);
    run_whole(parallel, run);
}

}  // namespace edge
