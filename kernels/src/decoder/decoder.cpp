// Checks the steps of a pass and runs them: embedding, layers, final norm and head.
#include "decoder/decoder.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "abi/checks.h"
#include "abi/error.h"
#include "decoder/layer.h"
#include "decoder/soft_prompt.h"

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
    if ((step.cache->summaries != nullptr) != (config.sparse.enabled != 0)) {
        return fail(EDGE_INVALID, "The cache belongs to a model with another kind of attention.");
    }
    if (past + step.n > config.context) {
        return fail(EDGE_CONTEXT, "%d more tokens after %d do not fit the context of %d tokens.", step.n,
                    int(past), config.context);
    }
    if (const edge_status status = check_soft(step)) return status;
    for (int32_t i = 0; i < step.n; ++i) {
        if (i >= step.n - step.soft_count) {
            if (step.tokens[i] >= 0 && step.tokens[i] < step.soft->count) continue;
            return fail(EDGE_INVALID, "The soft prompt has %d embeddings: there is no %d.",
                        int(step.soft->count), step.tokens[i]);
        }
        if (step.tokens[i] < 0 || step.tokens[i] >= config.vocab_size) {
            return fail(EDGE_VOCABULARY, "Token id %d at place %d is outside the vocabulary of %d.",
                        step.tokens[i], i, config.vocab_size);
        }
    }
    for (int32_t i = 0; i < step.n; ++i) {
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

edge_status edge_model::check_soft(const edge_step &step) const {
    if (step.soft_count == 0) return EDGE_OK;
    if (step.soft_count < 0 || step.soft_count >= step.n || step.soft == nullptr) {
        return fail(EDGE_INVALID, "Soft rows need a soft prompt, and a token before them.");
    }
    if (!step.soft->fits(cache_shape(), config.hidden_size)) {
        return fail(EDGE_INVALID, "The soft prompt belongs to a model of another shape.");
    }
    if (config.sparse.enabled) {
        return fail(EDGE_UNSUPPORTED, "Soft prompts need dense attention; open the model with it.");
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
            runner_.attention_block(layers_[size_t(index)], index);
            runner_.mlp_block(layers_[size_t(index)], index);
            copy_layer_outputs(index);
        }
        compute_logits(steps, count, logits);
    }
    size_t running = 0;
    for (int32_t i = 0; i < count; logits += steps[i++].logits_count * int64_t(config.vocab_size)) {
        if (steps[i].status == EDGE_OK) finish(&steps[i], runner_.sequences()[running++], logits);
    }
    for (int32_t i = 0; i < count; ++i) {
        if (steps[i].status != EDGE_OK) return fail(edge_status(steps[i].status), "%s", steps[i].error);
    }
    return EDGE_OK;
}

// The tokens of the steps without a fault, one sequence after the other.
void edge_model::gather(edge_step *steps, int32_t count) {
    ids_.clear();
    running_.clear();
    runner_.begin();
    for (int32_t i = 0; i < count; ++i) {
        edge_step &step = steps[i];
        set_status(&step, check(step));
        if (step.status != EDGE_OK) continue;
        set_status(&step, step.cache->make_room(step.cache->length, step.cache->length + step.n));
        if (step.status != EDGE_OK) continue;
        running_.push_back(&step);
        runner_.add({step.cache, 0, step.n, step.cache->length, step.tree, 0,
                     step.soft_count > 0 ? &step.soft->prefix : nullptr, step.soft_count});
        ids_.insert(ids_.end(), step.tokens, step.tokens + step.n - step.soft_count);
        ids_.resize(size_t(runner_.tokens()));
    }
}

void edge_model::embed() {
    const edge::LayerColumns &columns = runner_.shape.columns;
    const int64_t n = runner_.tokens();
    const Stage stage(observer, "embed", -1, {runner_.hidden(0), n, columns.hidden, columns.hidden_stride},
                      {}, n * embedding_.tile_bytes / edge::tile_rows);
    parallel_for(parallel, n, tokens_per_piece, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t token = begin; token < end; ++token) {
            edge::embed_token(embedding_, ids_[size_t(token)], config.embedding_scale, runner_.hidden(token));
        }
    });
    for (size_t i = 0; i < running_.size(); ++i) {
        const edge_step &step = *running_[i];
        for (int64_t at = step.n - step.soft_count; at < step.n; ++at) {
            const float *const row = &step.soft->embeddings[size_t(step.tokens[at] * step.soft->hidden)];
            float *const to = runner_.hidden(runner_.sequences()[i].first + at);
            for (int64_t c = 0; c < columns.hidden; ++c) to[c] = row[c] * config.embedding_scale;
        }
    }
}

void edge_model::prepare_rope() {
    int64_t row = 0;
    for (const edge_step *step : running_) {
        for (int32_t token = 0; token < step->n; ++token) {
            runner_.rotate(row++, step->positions ? step->positions[token] : step->cache->length + token);
        }
    }
}

void edge_model::copy_layer_outputs(int64_t index) {
    for (size_t i = 0; i < running_.size(); ++i) {
        const edge_step &step = *running_[i];
        for (int32_t wanted = 0; wanted < step.layer_count; ++wanted) {
            if (step.layer_indices[wanted] != index) continue;
            for (int64_t token = 0; token < step.n; ++token) {
                std::memcpy(step.layer_outputs + (int64_t(wanted) * step.n + token) * config.hidden_size,
                            runner_.hidden(runner_.sequences()[i].first + token),
                            size_t(config.hidden_size) * sizeof(float));
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
            const edge::Sequence &sequence = runner_.sequences()[running++];
            const int64_t last = sequence.first + sequence.n;
            for (int64_t token = last - steps[i].logits_count; token < last; ++token) {
                runner_.norm_row(final_norm_, config.logit_scale, token, rows++);
            }
        }
        if (rows > 0) compute_head(rows, logits);
        logits += (rows + (i < count ? steps[i].logits_count : 0)) * config.vocab_size;
    }
}

// The first `rows` normed states through the head.
void edge_model::compute_head(int64_t rows, float *logits) {
    const edge::LayerColumns &columns = runner_.shape.columns;
    {
        const Stage stage(observer, "final_norm", -1,
                          {runner_.normed(0), rows, columns.hidden, columns.hidden_stride});
        runner_.input().prepare(parallel, kernels, runner_.normed(0), columns.hidden_stride, rows, {&head()},
                                [](int64_t) {});
    }
    const Stage stage(observer, "head", -1, {logits, rows, config.vocab_size, config.vocab_size}, {&head()});
    const edge::LinearJob job{&head(), logits, config.vocab_size};
    run_linear(parallel, kernels, runner_.input(), rows, &job, 1);
}

// Gives a step what it wants beside the logits, and appends it to its cache unless it has failed.
void edge_model::finish(edge_step *step, const edge::Sequence &sequence, const float *logits) {
    const int64_t last = sequence.first + sequence.n - 1;
    if (step->hidden != nullptr) {
        for (int64_t token = sequence.first; token <= last; ++token) {
            runner_.norm_row(final_norm_, 1.0f, token, token);
            std::memcpy(step->hidden + (token - sequence.first) * config.hidden_size, runner_.normed(token),
                        size_t(config.hidden_size) * sizeof(float));
        }
    }
    const int64_t values = step->logits_count * int64_t(config.vocab_size);
    const char *const broken = !kernels.all_finite(runner_.hidden(last), runner_.shape.columns.hidden_stride)
                                   ? "hidden state is"
                               : values > 0 && !kernels.all_finite(logits, values) ? "logits are"
                                                                                   : nullptr;
    if (broken != nullptr) {
        set_status(step, fail(EDGE_NOT_FINITE, "The %s not finite: the weights are damaged.", broken));
        return step->cache->cut(sequence.past);
    }
    step->cache->length = sequence.past + step->n;
    if (step->soft_count > 0) step->cache->cut(sequence.past + step->n - step->soft_count);
    runner_.finish(sequence);
}
