// Loads weights by their roles, replaces some, and makes the workspace of a pass.
#include "decoder/decoder.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "abi/checks.h"
#include "abi/error.h"

using edge::fail;
using edge::Matrix;

namespace {

const char *const role_names[] = {"embedding", "head",      "final norm", "attention norm",
                                  "q_proj",    "k_proj",    "v_proj",     "o_proj",
                                  "MLP norm",  "gate_proj", "up_proj",    "down_proj"};
constexpr int role_count = 12;

}  // namespace

edge_model::edge_model(const edge_config &model_config, const edge_parallel &parallel,
                       const edge::Kernels &tier)
    : config(model_config),
      kernels(tier),
      pools(cache_shape(), config.sparse),
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

edge_status edge_model::replace(const edge_weight *weights, int64_t count) {
    const Matrix embedding = embedding_, head = untied_head_;
    const edge::Norm norm = final_norm_;
    const std::vector<edge::Layer> layers = layers_;
    std::vector<bool> seen(size_t(config.layers * role_count));
    for (int64_t i = 0; i < count; ++i) {
        edge_status status = set_weight(weights[i], &seen);
        if (status == EDGE_OK && weights[i].role == EDGE_HEAD && head.data == nullptr) {
            status = fail(EDGE_INVALID, "The head is tied to the embedding: it can't be replaced by itself.");
        }
        if (status == EDGE_OK) continue;
        embedding_ = embedding;
        untied_head_ = head;
        final_norm_ = norm;
        layers_ = layers;
        return status;
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
    tokens_.reserve(size_t(n));
    pieces_.reserve(size_t(n));
    running_.reserve(size_t(n));
    sequences_.reserve(size_t(n));
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
