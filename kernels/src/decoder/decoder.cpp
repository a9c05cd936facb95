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

edge_model::edge_model(const edge_config &config_, const edge_parallel &parallel_,
                       const edge::Kernels &kernels_)
    : config(config_),
      kernels(kernels_),
      parallel(parallel_),
      shape{config.hidden_size,
            int64_t(config.heads) * config.head_dim,
            int64_t(config.kv_heads) * config.head_dim,
            config.intermediate_size,
            edge::row_stride(config.hidden_size),
            edge::row_stride(int64_t(config.heads) * config.head_dim),
            edge::row_stride(int64_t(config.kv_heads) * config.head_dim),
            edge::row_stride(config.intermediate_size)},
      inverse_frequency(config.inverse_frequency, config.inverse_frequency + config.head_dim / 2),
      layers(size_t(config.layers)),
      input(edge_activations(config.activations)),
      attention(cache_shape(), config.heads, config.max_batch, parallel.workers) {
    if (config.sparse.enabled) {
        sparse_attention = std::make_unique<edge::SparseAttention>(cache_shape(), config.sparse, config.heads,
                                                                   config.max_batch, parallel.workers);
    }
}

edge::CacheShape edge_model::cache_shape() const {
    return {config.layers, config.kv_heads, config.head_dim, config.context, edge_kv_type(config.kv_type)};
}

// ---- Loading ----------------------------------------------------------------------------------------

edge_status edge_model::set_norm(const edge_matrix &matrix, const char *what, edge::Norm *norm) {
    Matrix checked;
    if (const edge_status status = edge::check_matrix(matrix, what, &checked)) return status;
    if (checked.kind != EDGE_F32 || checked.rows != 1 || checked.columns != shape.hidden) {
        return fail(EDGE_INVALID, "%s: expected 1 x %lld float32, got %lld x %lld of kind %d.", what,
                    (long long)shape.hidden, (long long)checked.rows, (long long)checked.columns,
                    checked.kind);
    }
    norm->assign(size_t(shape.hidden_stride), 0.0f);
    std::memcpy(norm->data(), matrix.data, size_t(shape.hidden) * sizeof(float));
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

    edge::Layer &layer = layers[size_t(weight.layer)];
    if (role == EDGE_FINAL_NORM) return set_norm(weight.matrix, what, &final_norm);
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
                return {&embedding, vocab, shape.hidden};
            case EDGE_HEAD:
                return {&untied_head, vocab, shape.hidden};
            case EDGE_Q:
                return {&layer.q, shape.query, shape.hidden};
            case EDGE_K:
                return {&layer.k, shape.kv, shape.hidden};
            case EDGE_V:
                return {&layer.v, shape.kv, shape.hidden};
            case EDGE_O:
                return {&layer.o, shape.hidden, shape.query};
            case EDGE_GATE:
                return {&layer.gate, shape.intermediate, shape.hidden};
            case EDGE_UP:
                return {&layer.up, shape.intermediate, shape.hidden};
            default:
                return {&layer.down, shape.hidden, shape.intermediate};
        }
    }();
    if (const edge_status status = edge::check_matrix(weight.matrix, what, slot.matrix)) return status;
    if (slot.matrix->kind == EDGE_F32)
        return fail(EDGE_INVALID, "%s: matrices can't be float32; use float16.", what);
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
    for (const edge::Layer &layer : layers) {
        for (const Matrix *m :
             {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
            input.plan(kernels, *m, n);
        }
    }
    input.plan(kernels, head(), n);
    input_memory.reset(input.bytes());
    input.place(input_memory.data());
    attention_memory.reset(attention.bytes());
    attention.place(attention_memory.data());
    if (sparse_attention) {
        sparse_memory.reset(sparse_attention->bytes());
        sparse_attention->place(sparse_memory.data());
    }
    hidden.resize(size_t(n * shape.hidden_stride));
    normed.resize(size_t(n * shape.hidden_stride));
    queries.resize(size_t(n * shape.query_stride));
    attended.resize(size_t(n * shape.query_stride));
    keys.resize(size_t(n * shape.kv_stride));
    values.resize(size_t(n * shape.kv_stride));
    activated.resize(size_t(n * shape.intermediate_stride));
    rope.resize(size_t(n * config.head_dim));
}

uint64_t edge_model::workspace_bytes() const {
    uint64_t floats = 0;
    for (const auto *buffer : {&hidden, &normed, &queries, &keys, &values, &attended, &activated, &rope}) {
        floats += buffer->size();
    }
    return floats * sizeof(float) + input.bytes() + attention.bytes() +
           (sparse_attention ? sparse_attention->bytes() : 0);
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
    if ((cache.summaries != nullptr) != (sparse_attention != nullptr)) {
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
                std::memcpy(batch.layer_outputs + (int64_t(i) * batch.n + token) * shape.hidden,
                            &hidden[token * shape.hidden_stride], size_t(shape.hidden) * sizeof(float));
            }
        }
    }
    if (const edge_status status = finish(batch)) return status;
    cache.length = past + batch.n;
    if (sparse_attention) sparse_attention->finish_batch(cache, batch.n, past, batch.tree);
    return EDGE_OK;
}

void edge_model::embed(const edge_batch &batch) {
    const Stage stage(observer, "embed", -1, {hidden.data(), batch.n, shape.hidden, shape.hidden_stride}, {},
                      batch.n * embedding.tile_bytes / edge::tile_rows);
    parallel_for(parallel, batch.n, tokens_per_piece, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t token = begin; token < end; ++token) {
            edge::embed_token(embedding, batch.tokens[token], config.embedding_scale,
                              &hidden[token * shape.hidden_stride]);
        }
    });
}

void edge_model::prepare_rope(const edge_batch &batch, int64_t past) {
    for (int64_t token = 0; token < batch.n; ++token) {
        const float position = float(batch.positions ? batch.positions[token] : past + token);
        edge::rope_row(position, inverse_frequency.data(), config.head_dim / 2, config.rope_scale,
                       &rope[token * config.head_dim]);
    }
}

void edge_model::norm_row(const edge::Norm &norm, float scale, int64_t token) {
    kernels.rms_norm(&hidden[token * shape.hidden_stride], norm.data(), config.rms_norm_eps, scale,
                     shape.hidden, shape.hidden_stride, &normed[token * shape.hidden_stride]);
}

void edge_model::attention_block(int64_t index, edge_cache &cache, const edge_batch &batch, int64_t past) {
    const edge::Layer &layer = layers[size_t(index)];
    const int64_t n = batch.n;
    {
        const Stage stage(observer, "attention_norm", index,
                          {normed.data(), n, shape.hidden, shape.hidden_stride});
        input.prepare(parallel, kernels, normed.data(), shape.hidden_stride, n,
                      {&layer.q, &layer.k, &layer.v},
                      [&](int64_t token) { norm_row(layer.attention_norm, 1.0f, token); });
    }
    {
        const Stage stage(observer, "qkv", index, {queries.data(), n, shape.query, shape.query_stride},
                          {&layer.q, &layer.k, &layer.v});
        const edge::LinearJob projections[] = {{&layer.q, queries.data(), shape.query_stride},
                                               {&layer.k, keys.data(), shape.kv_stride},
                                               {&layer.v, values.data(), shape.kv_stride}};
        run_linear(parallel, kernels, input, n, projections, 3);
    }
    store_keys_and_values(index, cache, n, past);
    {
        const int64_t row_bytes = cache.shape.position_bytes() / config.layers;
        const edge::SparseWork work =
            sparse_attention
                ? sparse_attention->work(n, past, batch.tree)
                : edge::SparseWork{past + n, batch.tree ? n * (past + n) : n * past + n * (n + 1) / 2};
        const Stage stage(observer, "attention", index, {attended.data(), n, shape.query, shape.query_stride},
                          {}, work.positions * row_bytes, 2 * work.pairs * shape.query);
        if (sparse_attention) {
            sparse_attention->run(parallel, kernels, attention, cache, index, queries.data(), attended.data(),
                                  shape.query_stride, n, past, batch.tree);
        } else {
            attention.run(parallel, kernels, cache, index, queries.data(), attended.data(),
                          shape.query_stride, n, past, batch.tree);
        }
    }
    {
        const Stage stage(observer, "o_input", index, {attended.data(), n, shape.query, shape.query_stride});
        input.prepare(parallel, kernels, attended.data(), shape.query_stride, n, {&layer.o}, [](int64_t) {});
    }
    const Stage stage(observer, "o", index, {hidden.data(), n, shape.hidden, shape.hidden_stride},
                      {&layer.o});
    const edge::LinearJob output{&layer.o, hidden.data(), shape.hidden_stride, true, config.residual_scale};
    run_linear(parallel, kernels, input, n, &output, 1);
}

// Rotates queries and keys, and writes keys and values into the cache.
void edge_model::store_keys_and_values(int64_t layer, edge_cache &cache, int64_t n, int64_t past) {
    const Stage stage(observer, "rope_cache", layer, {keys.data(), n, shape.kv, shape.kv_stride}, {},
                      n * cache.shape.position_bytes() / config.layers);
    parallel_for(parallel, n, tokens_per_piece, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t token = begin; token < end; ++token) {
            edge::append_token(kernels, cache, layer, past + token, &rope[token * config.head_dim],
                               config.heads, &queries[token * shape.query_stride],
                               &keys[token * shape.kv_stride], &values[token * shape.kv_stride]);
        }
    });
}

void edge_model::mlp_block(int64_t index, int64_t n) {
    const edge::Layer &layer = layers[size_t(index)];
    {
        const Stage stage(observer, "mlp_norm", index, {normed.data(), n, shape.hidden, shape.hidden_stride});
        input.prepare(parallel, kernels, normed.data(), shape.hidden_stride, n, {&layer.gate, &layer.up},
                      [&](int64_t token) { norm_row(layer.mlp_norm, 1.0f, token); });
    }
    {
        const Stage stage(observer, "gate_up", index,
                          {activated.data(), n, shape.intermediate, shape.intermediate_stride},
                          {&layer.gate, &layer.up});
        run_swiglu(parallel, kernels, input, n, layer.gate, layer.up, activated.data(),
                   shape.intermediate_stride);
    }
    {
        const Stage stage(observer, "down_input", index,
                          {activated.data(), n, shape.intermediate, shape.intermediate_stride});
        input.prepare(parallel, kernels, activated.data(), shape.intermediate_stride, n, {&layer.down},
                      [](int64_t) {});
    }
    const Stage stage(observer, "down", index, {hidden.data(), n, shape.hidden, shape.hidden_stride},
                      {&layer.down});
    const edge::LinearJob output{&layer.down, hidden.data(), shape.hidden_stride, true,
                                 config.residual_scale};
    run_linear(parallel, kernels, input, n, &output, 1);
}

edge_status edge_model::finish(const edge_batch &batch) {
    if (batch.hidden != nullptr) {
        for (int64_t token = 0; token < batch.n; ++token) {
            norm_row(final_norm, 1.0f, token);
            std::memcpy(batch.hidden + token * shape.hidden, &normed[token * shape.hidden_stride],
                        size_t(shape.hidden) * sizeof(float));
        }
    }
    const int64_t rows = batch.logits_count, first = batch.n - rows;
    if (rows == 0) {
        return kernels.all_finite(&hidden[(batch.n - 1) * shape.hidden_stride], shape.hidden_stride)
                   ? EDGE_OK
                   : fail(EDGE_NOT_FINITE, "The hidden state is not finite: the weights are damaged.");
    }
    {
        float *const last = &normed[first * shape.hidden_stride];
        const Stage stage(observer, "final_norm", -1, {last, rows, shape.hidden, shape.hidden_stride});
        input.prepare(parallel, kernels, last, shape.hidden_stride, rows, {&head()},
                      [&](int64_t token) { norm_row(final_norm, config.logit_scale, first + token); });
    }
    {
        const Stage stage(observer, "head", -1, {batch.logits, rows, config.vocab_size, config.vocab_size},
                          {&head()});
        const edge::LinearJob job{&head(), batch.logits, config.vocab_size};
        run_linear(parallel, kernels, input, rows, &job, 1);
    }
    if (!kernels.all_finite(batch.logits, rows * config.vocab_size)) {
        return fail(EDGE_NOT_FINITE, "The logits are not finite: the weights are damaged.");
    }
    return EDGE_OK;
}
