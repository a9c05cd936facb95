// Runs the two blocks of a layer: attention, and the MLP.
#include "decoder/layer_runner.h"

#include <cstring>

#include "decoder/layer.h"

namespace edge {

LayerRunner::LayerRunner(const edge_parallel &parallel, const Kernels &kernels, const Observer &observer,
                         const LayerShape &layer_shape)
    : shape(layer_shape),
      parallel_(parallel),
      kernels_(kernels),
      observer_(observer),
      input_(shape.activations),
      down_input_(shape.activations),
      attention_(shape.cache, shape.heads, shape.max_tokens, parallel.workers, shape.window) {
    if (shape.sparse.enabled) {
        sparse_attention_ = std::make_unique<SparseAttention>(shape.cache, shape.sparse, shape.heads,
                                                              shape.max_tokens, parallel.workers);
    }
}

void LayerRunner::plan(const Layer &layer) {
    for (const Matrix *matrix : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up}) {
        plan(*matrix);
    }
    down_input_.plan(kernels_, layer.down, shape.max_tokens);
}

void LayerRunner::allocate() {
    const size_t n = size_t(shape.max_tokens);
    const LayerColumns &columns = shape.columns;
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
    hidden_.resize(n * size_t(columns.hidden_stride));
    normed_.resize(n * size_t(columns.hidden_stride));
    queries_.resize(n * size_t(columns.query_stride));
    attended_.resize(n * size_t(columns.query_stride));
    keys_.resize(n * size_t(columns.kv_stride));
    values_.resize(n * size_t(columns.kv_stride));
    activated_.resize(n * size_t(columns.intermediate_stride));
    rope_.resize(n * size_t(shape.cache.head_dim));
    tokens_.reserve(n);
    pieces_.reserve(n);
    sequences_.reserve(n);
}

uint64_t LayerRunner::workspace_bytes() const {
    uint64_t floats = 0;
    for (const auto *buffer :
         {&hidden_, &normed_, &queries_, &keys_, &values_, &attended_, &activated_, &rope_}) {
        floats += buffer->size();
    }
    return floats * sizeof(float) + input_.bytes() + down_input_.bytes() + attention_.bytes() +
           (sparse_attention_ ? sparse_attention_->bytes() : 0);
}

void LayerRunner::begin() {
    tokens_.clear();
    pieces_.clear();
    sequences_.clear();
}

void LayerRunner::add(Sequence sequence) {
    sequence.first = tokens();
    sequences_.push_back(sequence);
    for (int64_t token = 0; token < sequence.n; ++token) {
        const int64_t row = sequence.past + sequence.earlier + token, place = tokens();
        if (token == 0 || row % shared_rows == 0) pieces_.push_back({place, place});
        pieces_.back().last = place + 1;
        tokens_.push_back({sequence.cache, row});
    }
}

void LayerRunner::rotate(int64_t token, int64_t position) {
    const int64_t dim = shape.cache.head_dim;
    rope_row(float(position), shape.inverse_frequency.data(), dim / 2, shape.rope_scale,
             &rope_[size_t(token * dim)]);
}

void LayerRunner::attention_block(const Layer &layer, int64_t index, Rows rows) {
    store_rows(layer, index, true, rows);
    attend(layer, index);
}

void LayerRunner::store_rows(const Layer &layer, int64_t index, bool with_queries, Rows rows) {
    const LayerColumns &columns = shape.columns;
    const int64_t n = tokens();
    const bool normalised = rows.data == nullptr && !layer.attention_norm.empty();
    if (rows.data == nullptr) rows = {normalised ? normed_.data() : hidden_.data(), columns.hidden_stride};
    {
        const Stage stage(observer_, "attention_norm", index,
                          {normed_.data(), n, columns.hidden, columns.hidden_stride});
        input_.prepare(parallel_, kernels_, rows.data, rows.stride, n, {&layer.q, &layer.k, &layer.v},
                       [&](int64_t token) {
                           if (normalised) norm_row(layer.attention_norm, 1.0f, token, token);
                       });
    }
    {
        const Stage stage(observer_, "qkv", index, {queries_.data(), n, columns.query, columns.query_stride},
                          {&layer.q, &layer.k, &layer.v});
        const LinearJob projections[] = {
            {&layer.k, keys_.data(), columns.kv_stride, false, 1.0f, data_of(layer.k_bias)},
            {&layer.v, values_.data(), columns.kv_stride, false, 1.0f, data_of(layer.v_bias)},
            {&layer.q, queries_.data(), columns.query_stride, false, 1.0f, data_of(layer.q_bias)}};
        run_linear(parallel_, kernels_, input_, n, projections, with_queries ? 3 : 2);
    }
    append_rows(layer, index, with_queries ? shape.heads : 0);
}

// RMSNorm of every head of a row, if the layer has one.
void LayerRunner::norm_heads(const Vector &norm, int64_t heads, float *row) const {
    if (norm.empty()) return;
    const int64_t dim = shape.cache.head_dim;
    for (float *head = row; head < row + heads * dim; head += dim) {
        kernels_.rms_norm(head, norm.data(), shape.norm_eps, 1.0f, dim, dim, head);
    }
}

// Norms and rotates queries and keys, and writes keys and values into the caches.
void LayerRunner::append_rows(const Layer &layer, int64_t index, int64_t heads) {
    const LayerColumns &columns = shape.columns;
    const int64_t n = tokens();
    const Stage stage(observer_, "rope_cache", index, {keys_.data(), n, columns.kv, columns.kv_stride}, {},
                      n * shape.cache.position_bytes() / shape.cache.layers);
    parallel_for(parallel_, int64_t(pieces_.size()), 1, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t token = pieces_[size_t(begin)].first; token < pieces_[size_t(end - 1)].last; ++token) {
            float *const queries = &queries_[size_t(token * columns.query_stride)];
            float *const keys = &keys_[size_t(token * columns.kv_stride)];
            norm_heads(layer.q_norm, heads, queries);
            norm_heads(layer.k_norm, shape.cache.kv_heads, keys);
            append_token(kernels_, *tokens_[size_t(token)].cache, index, tokens_[size_t(token)].row,
                         layer.rotates ? &rope_[size_t(token * shape.cache.head_dim)] : nullptr, heads,
                         queries, keys, &values_[size_t(token * columns.kv_stride)]);
        }
    });
}

void LayerRunner::attend(const Layer &layer, int64_t index) {
    const LayerColumns &columns = shape.columns;
    const int64_t n = tokens(), count = int64_t(sequences_.size());
    {
        SparseWork work{0, 0};
        for (const Sequence &sequence : sequences_) {
            const SparseWork one =
                sparse_attention_ ? sparse_attention_->work(sequence) : dense_work(sequence);
            work.positions += one.positions;
            work.pairs += one.pairs;
        }
        const Stage stage(observer_, "attention", index,
                          {attended_.data(), n, columns.query, columns.query_stride}, {},
                          work.positions * shape.cache.position_bytes() / shape.cache.layers,
                          2 * work.pairs * columns.query);
        if (sparse_attention_) {
            sparse_attention_->run(parallel_, kernels_, attention_, index, queries_.data(), attended_.data(),
                                   columns.query_stride, sequences_.data(), count);
        } else {
            attention_.run(parallel_, kernels_, index, queries_.data(), attended_.data(),
                           columns.query_stride, sequences_.data(), count);
        }
    }
    {
        const Stage stage(observer_, "o_input", index,
                          {attended_.data(), n, columns.query, columns.query_stride});
        input_.prepare(parallel_, kernels_, attended_.data(), columns.query_stride, n, {&layer.o},
                       [](int64_t) {});
    }
    const Stage stage(observer_, "o", index, {hidden_.data(), n, columns.hidden, columns.hidden_stride},
                      {&layer.o});
    const LinearJob output{&layer.o, hidden_.data(), columns.hidden_stride, true, shape.residual_scale};
    run_linear(parallel_, kernels_, input_, n, &output, 1);
}

void LayerRunner::mlp_block(const Layer &layer, int64_t index) {
    const LayerColumns &columns = shape.columns;
    const int64_t n = tokens();
    {
        const Stage stage(observer_, "mlp_norm", index,
                          {normed_.data(), n, columns.hidden, columns.hidden_stride});
        input_.prepare(parallel_, kernels_, normed_.data(), columns.hidden_stride, n,
                       {&layer.gate, &layer.up},
                       [&](int64_t token) { norm_row(layer.mlp_norm, 1.0f, token, token); });
    }
    {
        const Stage stage(observer_, "gate_up", index,
                          {activated_.data(), n, columns.intermediate, columns.intermediate_stride},
                          {&layer.gate, &layer.up});
        down_input_.select(kernels_, activated_.data(), columns.intermediate_stride, n, {&layer.down});
        run_swiglu(parallel_, kernels_, input_, n, layer.gate, layer.up, activated_.data(),
                   columns.intermediate_stride, &down_input_);
    }
    const Stage stage(observer_, "down", index, {hidden_.data(), n, columns.hidden, columns.hidden_stride},
                      {&layer.down});
    const LinearJob output{&layer.down, hidden_.data(), columns.hidden_stride, true, shape.residual_scale};
    run_linear(parallel_, kernels_, down_input_, n, &output, 1);
}

void LayerRunner::keep_last() {
    const int64_t last = tokens() - 1;
    if (last == 0) return;
    const Sequence before = sequences_[0];
    std::memcpy(hidden(0), hidden(last), size_t(shape.columns.hidden) * sizeof(float));
    std::memcpy(queries_.data(), &queries_[size_t(last * shape.columns.query_stride)],
                size_t(shape.columns.query) * sizeof(float));
    begin();
    add({before.cache, 0, 1, before.past + last, nullptr});
}

void LayerRunner::finish(const Sequence &sequence) const {
    if (sparse_attention_) sparse_attention_->finish_batch(sequence);
}

}  // namespace edge
