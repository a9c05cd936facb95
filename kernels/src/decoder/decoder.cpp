// Loads weights by their roles, checks a batch and runs it: embedding, layers, final norm and head.
#include "decoder/decoder.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "abi/checks.h"
#include "abi/error.h"
#include "decoder/layer.h"

using edge::fail;
using edge::Matrix;
using edge::parallel_for;
using edge::Stage;

namespace {

constexpr int64_t tokens_per_piece = 4;

const char *const role_names[] = {"embedding", "head",      "final norm", "attention norm",
                                  "q_proj",    "k_proj",    "v_proj",     "o_proj",
                                  "MLP norm",  "gate_proj", "up_proj",    "down_proj"};
constexpr int role_count = 12;

}  // namespace

edge_model::edge_model(const edge_config &model_config, const edge_parallel &parallel,
                       const edge::Kernels &tier)
    : config(model_config),
      kernels(tier),
      parallel_(parallel),
      shape_{config.hidden_size,
             int64_t(config.heads) * config.head_dim,
             int64_t(config.kv_heads) * config.head_dim,
             config.intermediate_size,
             edge::row_stride(config.hidden_size),
             edge::row_stride(int64_t(config.heads) * config.head_dim),
             edge::row_stride(int64_t(config.kv_heads) * config.head_dim),
             edge::row_stride(config.intermediate_size)},
      inverse_frequency_(config.inverse_frequency, config.inverse_frequency + config.head_dim / 2),
      layers_(size_t(config.layers)),
      input_(edge_activations(config.activations)),
      down_input_(edge_activations(config.activations)),
      attention_(cache_shape(), config.heads, config.max_batch, parallel_.workers) {
    if (config.sparse.enabled) {
        sparse_attention_ = std::make_unique<edge::SparseAttention>(
            cache_shape(), config.sparse, config.heads, config.max_batch, parallel_.workers);
    }
}

edge::CacheShape edge_model::cache_shape() const {
    return {config.layers, config.kv_heads, config.head_dim, config.context, edge_kv_type(config.kv_type)};
}

// ---- Loading ----------------------------------------------------------------------------------------

edge_status edge_model::set_norm(const edge_matrix &matrix, const char *what, edge::Norm *norm) {
    Matrix checked;
    if (const edge_status status = edge::check_matrix(matrix, what, &checked)) return status;
    if (checked.kind != EDGE_F32 || checked.rows != 1 || checked.columns != shape_.hidden) {
        return fail(EDGE_INVALID, "%s: expected 1 x %lld float32, got %lld x %lld of kind %d.", what,
                    (long long)shape_.hidden, (long long)checked.rows, (long long)checked.columns,
                    checked.kind);
    }
    norm->assign(size_t(shape_.hidden_stride), 0.0f);
    std::memcpy(norm->data(), matrix.data, size_t(shape_.hidden) * sizeof(float));
    return EDGE_OK;
}

edge_status edge_model::set_weight(const edge_weight &weight, std::vector<bool> *seen) {
    const int role = weight.role;
    if (role < 0 || role >= role_count) return fail(EDGE_INVALID, "Unknown weight role %d.", role);
    const bool in_layer = role >= EDGE_ATTENTION_NORM;
    if (weight.layer < 0 || weight.layer >= (in_layer ? config.layers : 1)) {
        return fail(EDGE_INVALID, "%s: layer %d does not exist.", role_names[role], weight.layer);
    }
    char what[64];
    std::snprintf(what, sizeof what, in_layer ? "%s of layer %d" : "%s", role_names[role], weight.layer);
    const size_t place = size_t(weight.layer * role_count + role);
    if ((*seen)[place]) return fail(EDGE_INVALID, "%s is given twice.", what);
    (*seen)[place] = true;

    edge::Layer &layer = layers_[size_t(weight.layer)];
    if (role == EDGE_FINAL_NORM) return set_norm(weight.matrix, what, &final_norm_);
    if (role == EDGE_ATTENTION_NORM) return set_norm(weight.matrix, what, &layer.attention_norm);
    if (role == EDGE_MLP_NORM) return set_norm(weight.matrix, what, &layer.mlp_norm);

    struct Slot {
        Matrix *matrix;
        int64_t rows, columns;
    };
    const int64_t vocab = config.vocab_size;
    const auto slot = [&]() -> Slot {
        switch (role) {
            case EDGE_EMBEDDING:
                return {&embedding_, vocab, shape_.hidden};
            case EDGE_HEAD:
                return {&untied_head_, vocab, shape_.hidden};
            case EDGE_Q:
                return {&layer.q, shape_.query, shape_.hidden};
            case EDGE_K:
                return {&layer.k, shape_.kv, shape_.hidden};
            case EDGE_V:
                return {&layer.v, shape_.kv, shape_.hidden};
            case EDGE_O:
                return {&layer.o, shape_.hidden, shape_.query};
            case EDGE_GATE:
                return {&layer.gate, shape_.intermediate, shape_.hidden};
            case EDGE_UP:
                return {&layer.up, shape_.intermediate, shape_.hidden};
            default:
                return {&layer.down, shape_.hidden, shape_.intermediate};
        }
    }();
    if (const edge_status status = edge::check_matrix(weight.matrix, what, slot.matrix)) return status;
    if (slot.matrix->kind == EDGE_F32) {
        return fail(EDGE_INVALID, "%s: matrices can't be float32; use float16.", what);
    }
    if (slot.matrix->rows != slot.rows || slot.matrix->columns != slot.columns) {
        return fail(EDGE_INVALID, "%s: expected %lld x %lld, got %lld x %lld.", what, (long long)slot.rows,
                    (long long)slot.columns, (long long)slot.matrix->rows, (long long)slot.matrix->columns);
    }
    return EDGE_OK;
}

edge_status edge_model::load(const edge_weight *weights, int64_t count) {
    std::vector<bool> seen(size_t(config.layers * role_count));
    for (int64_t i = 0; i < count; ++i) {
        if (const edge_status status = set_weight(weights[i], &seen)) return status;
    }
    for (int32_t layer = 0; layer < config.layers; ++layer) {
        for (int role = 0; role < role_count; ++role) {
            const bool wanted = role >= EDGE_ATTENTION_NORM || (layer == 0 && role != EDGE_HEAD);
            if (wanted && !seen[size_t(layer * role_count + role)]) {
                return fail(EDGE_INVALID, "The %s of layer %d is missing.", role_names[role], layer);
            }
        }
    }
    allocate();
    return EDGE_OK;
}

void edge_model::allocate() {
    const int64_t n = config.max_batch;
    for (const edge::Layer &layer : layers_) {
        for (const Matrix *m : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up}) {
            input_.plan(kernels, *m, n);
        }
        down_input_.plan(kernels, layer.down, n);
    }
    input_.plan(kernels, head(), n);
    input_memory_.reset(input_.bytes());
    input_.place(input_memory_.data());
    down_input_memory_.reset(down_input_.bytes());
    down_input_.place(down_input_memory_.data());
    attention_memory_.reset(attention_.bytes());
    attention_.place(attention_memory_.data());
    if (sparse_attention_) {
        sparse_memory_.reset(sparse_attention_->bytes());
        sparse_attention_->place(sparse_memory_.data());
    }
    hidden_.resize(size_t(n * shape_.hidden_stride));
    normed_.resize(size_t(n * shape_.hidden_stride));
    queries_.resize(size_t(n * shape_.query_stride));
    attended_.resize(size_t(n * shape_.query_stride));
    keys_.resize(size_t(n * shape_.kv_stride));
    values_.resize(size_t(n * shape_.kv_stride));
    activated_.resize(size_t(n * shape_.intermediate_stride));
    rope_.resize(size_t(n * config.head_dim));
}

uint64_t edge_model::workspace_bytes() const {
    uint64_t floats = 0;
    for (const auto *buffer :
         {&hidden_, &normed_, &queries_, &keys_, &values_, &attended_, &activated_, &rope_}) {
        floats += buffer->size();
    }
    return floats * sizeof(float) + input_.bytes() + down_input_.bytes() + attention_.bytes() +
           (sparse_attention_ ? sparse_attention_->bytes() : 0);
}

// ---- Running ----------------------------------------------------------------------------------------

edge_status edge_model::check(const edge_cache &cache, const edge_batch &batch) const {
    const int64_t past = cache.length;
    if (batch.n <= 0 || batch.n > config.max_batch || batch.tokens == nullptr) {
        return fail(EDGE_INVALID, "A batch has 1 to %d tokens, got %d.", config.max_batch, batch.n);
    }
    if (past + batch.n > config.context) {
        return fail(EDGE_CONTEXT, "%d more tokens after %d do not fit the context of %d tokens.", batch.n,
                    int(past), config.context);
    }
    const edge::CacheShape mine = cache_shape(), theirs = cache.shape;
    if (mine.layers != theirs.layers || mine.kv_heads != theirs.kv_heads ||
        mine.head_dim != theirs.head_dim || mine.capacity != theirs.capacity || mine.type != theirs.type) {
        return fail(EDGE_INVALID, "The cache belongs to a model of another shape.");
    }
    if ((cache.summaries != nullptr) != (sparse_attention_ != nullptr)) {
        return fail(EDGE_INVALID, "The cache belongs to a model with another kind of attention.");
    }
    for (int32_t i = 0; i < batch.n; ++i) {
        if (batch.tokens[i] < 0 || batch.tokens[i] >= config.vocab_size) {
            return fail(EDGE_VOCABULARY, "Token id %d at place %d is outside the vocabulary of %d.",
                        batch.tokens[i], i, config.vocab_size);
        }
        if (batch.positions && (batch.positions[i] < 0 || batch.positions[i] >= config.context)) {
            return fail(EDGE_CONTEXT, "Position %d is outside the context of %d tokens.", batch.positions[i],
                        config.context);
        }
    }
    if (batch.tree != nullptr) {
        if (const edge_status status = edge::check_tree(batch.tree, batch.n)) return status;
    }
    if ((batch.logits_count != 0 && batch.logits_count != 1 && batch.logits_count != batch.n) ||
        (batch.logits_count != 0 && batch.logits == nullptr)) {
        return fail(EDGE_INVALID, "Logits are wanted for 0, 1 or all tokens, with a place to write them.");
    }
    if (batch.layer_count < 0 || (batch.layer_count > 0 && (!batch.layer_indices || !batch.layer_outputs))) {
        return fail(EDGE_INVALID, "Outputs of layers need their indices and a place to write them.");
    }
    for (int32_t i = 0; i < batch.layer_count; ++i) {
        if (batch.layer_indices[i] < 0 || batch.layer_indices[i] >= config.layers) {
            return fail(EDGE_INVALID, "The model has %d layers: there is no layer %d.", config.layers,
                        batch.layer_indices[i]);
        }
    }
    return EDGE_OK;
}

edge_status edge_model::forward(edge_cache &cache, const edge_batch &batch) {
    if (const edge_status status = check(cache, batch)) return status;
    const int64_t past = cache.length;
    embed(batch);
    prepare_rope(batch, past);
    for (int64_t index = 0; index < config.layers; ++index) {
        attention_block(index, cache, batch, past);
        mlp_block(index, batch.n);
        for (int32_t i = 0; i < batch.layer_count; ++i) {
            if (batch.layer_indices[i] != index) continue;
            for (int64_t token = 0; token < batch.n; ++token) {
                std::memcpy(batch.layer_outputs + (int64_t(i) * batch.n + token) * shape_.hidden,
                            &hidden_[token * shape_.hidden_stride], size_t(shape_.hidden) * sizeof(float));
            }
        }
    }
    if (const edge_status status = finish(batch)) return status;
    cache.length = past + batch.n;
    if (sparse_attention_) sparse_attention_->finish_batch(cache, batch.n, past, batch.tree);
    return EDGE_OK;
}

void edge_model::embed(const edge_batch &batch) {
    const Stage stage(observer, "embed", -1, {hidden_.data(), batch.n, shape_.hidden, shape_.hidden_stride},
                      {}, batch.n * embedding_.tile_bytes / edge::tile_rows);
    parallel_for(parallel_, batch.n, tokens_per_piece, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t token = begin; token < end; ++token) {
            edge::embed_token(embedding_, batch.tokens[token], config.embedding_scale,
                              &hidden_[token * shape_.hidden_stride]);
        }
    });
}

void edge_model::prepare_rope(const edge_batch &batch, int64_t past) {
    for (int64_t token = 0; token < batch.n; ++token) {
        const float position = float(batch.positions ? batch.positions[token] : past + token);
        edge::rope_row(position, inverse_frequency_.data(), config.head_dim / 2, config.rope_scale,
                       &rope_[token * config.head_dim]);
    }
}

void edge_model::norm_row(const edge::Norm &norm, float scale, int64_t token) {
    kernels.rms_norm(&hidden_[token * shape_.hidden_stride], norm.data(), config.rms_norm_eps, scale,
                     shape_.hidden, shape_.hidden_stride, &normed_[token * shape_.hidden_stride]);
}

void edge_model::attention_block(int64_t index, edge_cache &cache, const edge_batch &batch, int64_t past) {
    const edge::Layer &layer = layers_[size_t(index)];
    const int64_t n = batch.n;
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
    store_keys_and_values(index, cache, n, past);
    {
        const int64_t row_bytes = cache.shape.position_bytes() / config.layers;
        const edge::SparseWork work =
            sparse_attention_
                ? sparse_attention_->work(n, past, batch.tree)
                : edge::SparseWork{past + n, batch.tree ? n * (past + n) : n * past + n * (n + 1) / 2};
        const Stage stage(observer, "attention", index,
                          {attended_.data(), n, shape_.query, shape_.query_stride}, {},
                          work.positions * row_bytes, 2 * work.pairs * shape_.query);
        if (sparse_attention_) {
            sparse_attention_->run(parallel_, kernels, attention_, cache, index, queries_.data(),
                                   attended_.data(), shape_.query_stride, n, past, batch.tree);
        } else {
            attention_.run(parallel_, kernels, cache, index, queries_.data(), attended_.data(),
                           shape_.query_stride, n, past, batch.tree);
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

// Rotates queries and keys, and writes keys and values into the cache.
void edge_model::store_keys_and_values(int64_t layer, edge_cache &cache, int64_t n, int64_t past) {
    const Stage stage(observer, "rope_cache", layer, {keys_.data(), n, shape_.kv, shape_.kv_stride}, {},
                      n * cache.shape.position_bytes() / config.layers);
    edge::append_tokens(parallel_, past, n, [&](int64_t token, int32_t) {
        edge::append_token(kernels, cache, layer, past + token, &rope_[token * config.head_dim], config.heads,
                           &queries_[token * shape_.query_stride], &keys_[token * shape_.kv_stride],
                           &values_[token * shape_.kv_stride]);
    });
}

void edge_model::mlp_block(int64_t index, int64_t n) {
    const edge::Layer &layer = layers_[size_t(index)];
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

edge_status edge_model::finish(const edge_batch &batch) {
    if (batch.hidden != nullptr) {
        for (int64_t token = 0; token < batch.n; ++token) {
            norm_row(final_norm_, 1.0f, token);
            std::memcpy(batch.hidden + token * shape_.hidden, &normed_[token * shape_.hidden_stride],
                        size_t(shape_.hidden) * sizeof(float));
        }
    }
    const int64_t rows = batch.logits_count, first = batch.n - rows;
    if (rows == 0) {
        return kernels.all_finite(&hidden_[(batch.n - 1) * shape_.hidden_stride], shape_.hidden_stride)
                   ? EDGE_OK
                   : fail(EDGE_NOT_FINITE, "The hidden state is not finite: the weights are damaged.");
    }
    {
        float *const last = &normed_[first * shape_.hidden_stride];
        const Stage stage(observer, "final_norm", -1, {last, rows, shape_.hidden, shape_.hidden_stride});
        input_.prepare(parallel_, kernels, last, shape_.hidden_stride, rows, {&head()},
                       [&](int64_t token) { norm_row(final_norm_, config.logit_scale, first + token); });
    }
    {
        const Stage stage(observer, "head", -1, {batch.logits, rows, config.vocab_size, config.vocab_size},
                          {&head()});
        const edge::LinearJob job{&head(), batch.logits, config.vocab_size};
        run_linear(parallel_, kernels, input_, rows, &job, 1);
    }
    if (!kernels.all_finite(batch.logits, rows * config.vocab_size)) {
        return fail(EDGE_NOT_FINITE, "The logits are not finite: the weights are damaged.");
    }
    return EDGE_OK;
}
