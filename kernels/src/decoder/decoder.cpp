// Checks the steps of a pass and runs them: embedding, layers, final norm and head.
#include "decoder/decoder.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "abi/checks.h"
#include "abi/error.h"
#include "decoder/layer.h"

using edge::fail;
using edge::parallel_for;
using edge::Stage;

namespace {

constexpr int64_t tokens_per_piece = 4;

// Keeps the last error in the step that it is about.
void set_status(edge_step *step, edge_status status) {
    step->status = status;
    std::snprintf(step->error, sizeof step->error, "%s", status == EDGE_OK ? "" : edge_last_error());
}

}  // namespace

// What concerns all steps: nothing is run if it is wrong.
edge_status edge_model::check_pass(const edge_step *steps, int32_t count, const float *logits) const {
    int64_t tokens = 0;
    for (int32_t i = 0; i < count; ++i) {
        const edge_step &step = steps[i];
        if (step.cache == nullptr || step.tokens == nullptr || step.n <= 0) {
            return fail(EDGE_INVALID, "A step has a cache and at least one token.");
        }
        for (int32_t j = 0; j < i; ++j) {
            if (steps[j].cache == step.cache) {
                return fail(EDGE_INVALID, "Steps %d and %d of a pass have the same cache.", j, i);
            }
        }
        if (step.logits_count < 0 || step.logits_count > step.n || (step.logits_count > 0 && !logits)) {
            return fail(EDGE_INVALID, "Logits are wanted for 0 to n tokens, with a place to write them.");
        }
        tokens += step.n;
    }
    if (tokens > config.max_batch) {
        return fail(EDGE_INVALID, "A pass has 1 to %d tokens, got %lld.", config.max_batch,
                    (long long)tokens);
    }
    return EDGE_OK;
}

edge_status edge_model::check(const edge_step &step) const {
    const int64_t past = step.cache->length;
    const edge::CacheShape mine = cache_shape(), theirs = step.cache->shape;
    if (mine.layers != theirs.layers || mine.kv_heads != theirs.kv_heads ||
        mine.head_dim != theirs.head_dim || mine.capacity != theirs.capacity || mine.type != theirs.type) {
        return fail(EDGE_INVALID, "The cache belongs to a model of another shape.");
    }
    if ((step.cache->summaries != nullptr) != (sparse_attention_ != nullptr)) {
        return fail(EDGE_INVALID, "The cache belongs to a model with another kind of attention.");
    }
    if (past + step.n > config.context) {
        return fail(EDGE_CONTEXT, "%d more tokens after %d do not fit the context of %d tokens.", step.n,
                    int(past), config.context);
    }
    for (int32_t i = 0; i < step.n; ++i) {
        if (step.tokens[i] < 0 || step.tokens[i] >= config.vocab_size) {
            return fail(EDGE_VOCABULARY, "Token id %d at place %d is outside the vocabulary of %d.",
                        step.tokens[i], i, config.vocab_size);
        }
        if (step.positions && (step.positions[i] < 0 || step.positions[i] >= config.context)) {
            return fail(EDGE_CONTEXT, "Position %d is outside the context of %d tokens.", step.positions[i],
                        config.context);
        }
    }
    if (step.tree != nullptr) {
        if (const edge_status status = edge::check_tree(step.tree, step.n)) return status;
    }
    if (step.layer_count < 0 || (step.layer_count > 0 && (!step.layer_indices || !step.layer_outputs))) {
        return fail(EDGE_INVALID, "Outputs of layers need their indices and a place to write them.");
    }
    for (int32_t i = 0; i < step.layer_count; ++i) {
        if (step.layer_indices[i] < 0 || step.layer_indices[i] >= config.layers) {
            return fail(EDGE_INVALID, "The model has %d layers: there is no layer %d.", config.layers,
                        step.layer_indices[i]);
        }
    }
    return EDGE_OK;
}

edge_status edge_model::forward(edge_step *steps, int32_t count, float *logits) {
    if (const edge_status status = check_pass(steps, count, logits)) return status;
    gather(steps, count);
    if (!running_.empty()) {
        embed();
        prepare_rope();
        for (int64_t index = 0; index < config.layers; ++index) {
            attention_block(index);
            mlp_block(index);
            copy_layer_outputs(index);
        }
        compute_logits(steps, count, logits);
    }
    size_t running = 0;
    for (int32_t i = 0; i < count; logits += steps[i++].logits_count * int64_t(config.vocab_size)) {
        if (steps[i].status == EDGE_OK) finish(&steps[i], sequences_[running++], logits);
    }
    for (int32_t i = 0; i < count; ++i) {
        if (steps[i].status != EDGE_OK) return fail(edge_status(steps[i].status), "%s", steps[i].error);
    }
    return EDGE_OK;
}

// The tokens of the steps without a fault, one sequence after the other.
void edge_model::gather(edge_step *steps, int32_t count) {
    tokens_.clear();
    pieces_.clear();
    running_.clear();
    sequences_.clear();
    for (int32_t i = 0; i < count; ++i) {
        edge_step &step = steps[i];
        set_status(&step, check(step));
        if (step.status != EDGE_OK) continue;
        set_status(&step, step.cache->make_room(step.cache->length, step.cache->length + step.n));
        if (step.status != EDGE_OK) continue;
        running_.push_back(&step);
        sequences_.push_back({step.cache, int64_t(tokens_.size()), step.n, step.cache->length, step.tree});
        for (int32_t token = 0; token < step.n; ++token) {
            const int64_t row = step.cache->length + token, place = int64_t(tokens_.size());
            if (token == 0 || row % edge::shared_rows == 0) pieces_.push_back({place, place});
            pieces_.back().last = place + 1;
            tokens_.push_back({step.tokens[token], step.cache, row});
        }
    }
}

void edge_model::embed() {
    const int64_t n = int64_t(tokens_.size());
    const Stage stage(observer, "embed", -1, {hidden_.data(), n, shape_.hidden, shape_.hidden_stride}, {},
                      n * embedding_.tile_bytes / edge::tile_rows);
    parallel_for(parallel_, n, tokens_per_piece, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t token = begin; token < end; ++token) {
            edge::embed_token(embedding_, tokens_[size_t(token)].id, config.embedding_scale,
                              &hidden_[token * shape_.hidden_stride]);
        }
    });
}

void edge_model::prepare_rope() {
    float *row = rope_.data();
    for (const edge_step *step : running_) {
        for (int32_t token = 0; token < step->n; ++token, row += config.head_dim) {
            const float position =
                float(step->positions ? step->positions[token] : step->cache->length + token);
            edge::rope_row(position, inverse_frequency_.data(), config.head_dim / 2, config.rope_scale, row);
        }
    }
}

// Row `row` of the normed states: the token's.
void edge_model::norm_row(const edge::Norm &norm, float scale, int64_t token, int64_t row) {
    kernels.rms_norm(&hidden_[token * shape_.hidden_stride], norm.data(), config.rms_norm_eps, scale,
                     shape_.hidden, shape_.hidden_stride, &normed_[row * shape_.hidden_stride]);
}

void edge_model::attention_block(int64_t index) {
    const edge::Layer &layer = layers_[size_t(index)];
    const int64_t n = int64_t(tokens_.size());
    {
        const Stage stage(observer, "attention_norm", index,
                          {normed_.data(), n, shape_.hidden, shape_.hidden_stride});
        input_.prepare(parallel_, kernels, normed_.data(), shape_.hidden_stride, n,
                       {&layer.q, &layer.k, &layer.v},
                       [&](int64_t token) { norm_row(layer.attention_norm, 1.0f, token); });
    }
    {
        const Stage stage(observer, "qkv", index, {queries_.data(), n, shape_.query, shape_.query_stride},
                          {&layer.q, &layer.k, &layer.v});
        const edge::LinearJob projections[] = {{&layer.q, queries_.data(), shape_.query_stride},
                                               {&layer.k, keys_.data(), shape_.kv_stride},
                                               {&layer.v, values_.data(), shape_.kv_stride}};
        run_linear(parallel_, kernels, input_, n, projections, 3);
    }
    store_keys_and_values(index);
    {
        edge::SparseWork work{0, 0};
        for (const edge::Sequence &sequence : sequences_) {
            const edge::SparseWork one =
                sparse_attention_ ? sparse_attention_->work(sequence) : edge::dense_work(sequence);
            work.positions += one.positions;
            work.pairs += one.pairs;
        }
        const Stage stage(
            observer, "attention", index, {attended_.data(), n, shape_.query, shape_.query_stride}, {},
            work.positions * cache_shape().position_bytes() / config.layers, 2 * work.pairs * shape_.query);
        if (sparse_attention_) {
            sparse_attention_->run(parallel_, kernels, attention_, index, queries_.data(), attended_.data(),
                                   shape_.query_stride, sequences_.data(), int64_t(sequences_.size()));
        } else {
            attention_.run(parallel_, kernels, index, queries_.data(), attended_.data(), shape_.query_stride,
                           sequences_.data(), int64_t(sequences_.size()));
        }
    }
    {
        const Stage stage(observer, "o_input", index,
                          {attended_.data(), n, shape_.query, shape_.query_stride});
        input_.prepare(parallel_, kernels, attended_.data(), shape_.query_stride, n, {&layer.o},
                       [](int64_t) {});
    }
    const Stage stage(observer, "o", index, {hidden_.data(), n, shape_.hidden, shape_.hidden_stride},
                      {&layer.o});
    const edge::LinearJob output{&layer.o, hidden_.data(), shape_.hidden_stride, true, config.residual_scale};
    run_linear(parallel_, kernels, input_, n, &output, 1);
}

// Rotates queries and keys, and writes keys and values into the caches.
void edge_model::store_keys_and_values(int64_t layer) {
    const int64_t n = int64_t(tokens_.size());
    const Stage stage(observer, "rope_cache", layer, {keys_.data(), n, shape_.kv, shape_.kv_stride}, {},
                      n * cache_shape().position_bytes() / config.layers);
    parallel_for(parallel_, int64_t(pieces_.size()), 1, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t token = pieces_[size_t(begin)].first; token < pieces_[size_t(end - 1)].last; ++token) {
            edge::append_token(kernels, *tokens_[size_t(token)].cache, layer, tokens_[size_t(token)].row,
                               &rope_[token * config.head_dim], config.heads,
                               &queries_[token * shape_.query_stride], &keys_[token * shape_.kv_stride],
                               &values_[token * shape_.kv_stride]);
        }
    });
}

void edge_model::mlp_block(int64_t index) {
    const edge::Layer &layer = layers_[size_t(index)];
    const int64_t n = int64_t(tokens_.size());
    {
        const Stage stage(observer, "mlp_norm", index,
                          {normed_.data(), n, shape_.hidden, shape_.hidden_stride});
        input_.prepare(parallel_, kernels, normed_.data(), shape_.hidden_stride, n, {&layer.gate, &layer.up},
                       [&](int64_t token) { norm_row(layer.mlp_norm, 1.0f, token); });
    }
    {
        const Stage stage(observer, "gate_up", index,
                          {activated_.data(), n, shape_.intermediate, shape_.intermediate_stride},
                          {&layer.gate, &layer.up});
        down_input_.select(kernels, activated_.data(), shape_.intermediate_stride, n, {&layer.down});
        run_swiglu(parallel_, kernels, input_, n, layer.gate, layer.up, activated_.data(),
                   shape_.intermediate_stride, &down_input_);
    }
    const Stage stage(observer, "down", index, {hidden_.data(), n, shape_.hidden, shape_.hidden_stride},
                      {&layer.down});
    const edge::LinearJob output{&layer.down, hidden_.data(), shape_.hidden_stride, true,
                                 config.residual_scale};
    run_linear(parallel_, kernels, down_input_, n, &output, 1);
}

void edge_model::copy_layer_outputs(int64_t index) {
    for (size_t i = 0; i < running_.size(); ++i) {
        const edge_step &step = *running_[i];
        for (int32_t wanted = 0; wanted < step.layer_count; ++wanted) {
            if (step.layer_indices[wanted] != index) continue;
            for (int64_t token = 0; token < step.n; ++token) {
                std::memcpy(step.layer_outputs + (int64_t(wanted) * step.n + token) * shape_.hidden,
                            &hidden_[(sequences_[i].first + token) * shape_.hidden_stride],
                            size_t(shape_.hidden) * sizeof(float));
            }
        }
    }
}

// Rows that follow each other in `logits` go through the head together: those between two steps that failed.
void edge_model::compute_logits(const edge_step *steps, int32_t count, float *logits) {
    size_t running = 0;
    for (int32_t i = 0; i < count; ++i) {
        int64_t rows = 0;
        for (; i < count && steps[i].status == EDGE_OK; ++i) {
            const edge::Sequence &sequence = sequences_[running++];
            const int64_t last = sequence.first + sequence.n;
            for (int64_t token = last - steps[i].logits_count; token < last; ++token) {
                norm_row(final_norm_, config.logit_scale, token, rows++);
            }
        }
        if (rows > 0) compute_head(rows, logits);
        logits += (rows + (i < count ? steps[i].logits_count : 0)) * config.vocab_size;
    }
}

// The first `rows` normed states through the head.
void edge_model::compute_head(int64_t rows, float *logits) {
    {
        const Stage stage(observer, "final_norm", -1,
                          {normed_.data(), rows, shape_.hidden, shape_.hidden_stride});
        input_.prepare(parallel_, kernels, normed_.data(), shape_.hidden_stride, rows, {&head()},
                       [](int64_t) {});
    }
    const Stage stage(observer, "head", -1, {logits, rows, config.vocab_size, config.vocab_size}, {&head()});
    const edge::LinearJob job{&head(), logits, config.vocab_size};
    run_linear(parallel_, kernels, input_, rows, &job, 1);
}

// Gives a step what it wants beside the logits, and appends it to its cache unless it has failed.
void edge_model::finish(edge_step *step, const edge::Sequence &sequence, const float *logits) {
    const int64_t last = sequence.first + sequence.n - 1;
    if (step->hidden != nullptr) {
        for (int64_t token = 0; token < step->n; ++token) {
            norm_row(final_norm_, 1.0f, sequence.first + token);
            std::memcpy(step->hidden + token * shape_.hidden,
                        &normed_[(sequence.first + token) * shape_.hidden_stride],
                        size_t(shape_.hidden) * sizeof(float));
        }
    }
    const int64_t values = step->logits_count * int64_t(config.vocab_size);
    const char *const broken =
        !kernels.all_finite(&hidden_[last * shape_.hidden_stride], shape_.hidden_stride) ? "hidden state is"
        : values > 0 && !kernels.all_finite(logits, values)                              ? "logits are"
                                                                                         : nullptr;
    if (broken != nullptr) {
        set_status(step, fail(EDGE_NOT_FINITE, "The %s not finite: the weights are damaged.", broken));
        return step->cache->cut(sequence.past);
    }
    step->cache->length = sequence.past + step->n;
    if (sparse_attention_) sparse_attention_->finish_batch(sequence);
}
