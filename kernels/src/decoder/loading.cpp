// Loads weights by their roles, replaces some, and makes the workspace of a pass.
#include <cstdio>

#include "abi/error.h"
#include "decoder/decoder.h"
#include "decoder/weights.h"

using edge::fail;
using edge::Matrix;
using edge::role_count;
using edge::role_name;

namespace {

// Whether a weight is a bias or a norm of heads that its layer does without.
bool is_absent(const edge_weight &weight, const std::vector<edge::Layer> &layers) {
    edge::Vector edge::Layer::*const vector = edge::optional_vector(weight.role);
    return vector != nullptr && (layers[size_t(weight.layer)].*vector).empty();
}

}  // namespace

edge_model::edge_model(const edge_config &model_config, const edge_parallel &threads,
                       const edge::Kernels &tier)
    : config(model_config),
      parallel(threads),
      kernels(tier),
      pools(cache_shape(), config.sparse),
      layers_(size_t(config.layers)),
      runner_(parallel, kernels, observer,
              {{config.hidden_size, int64_t(config.heads) * config.head_dim,
                int64_t(config.kv_heads) * config.head_dim, config.intermediate_size, config.hidden_size},
               cache_shape(),
               config.heads,
               config.max_batch,
               0,
               config.sparse,
               edge_activations(config.activations),
               config.rms_norm_eps,
               config.residual_scale,
               config.rope_scale,
               {config.inverse_frequency, config.inverse_frequency + config.head_dim / 2}}) {
    for (int32_t layer = 0; config.layers_without_rope != nullptr && layer < config.layers; ++layer) {
        layers_[size_t(layer)].rotates = config.layers_without_rope[layer] == 0;
    }
}

edge::CacheShape edge_model::cache_shape() const {
    return {config.layers, config.kv_heads, config.head_dim, config.context, edge_kv_type(config.kv_type)};
}

edge_status edge_model::set_weight(const edge_weight &weight, std::vector<bool> *seen) {
    const int role = weight.role;
    if (role < 0 || role >= role_count || edge::is_of_draft(role)) {
        return fail(EDGE_INVALID, "Unknown weight role %d.", role);
    }
    const bool in_layer = edge::is_in_layer(role);
    if (weight.layer < 0 || weight.layer >= (in_layer ? config.layers : 1)) {
        return fail(EDGE_INVALID, "%s: layer %d does not exist.", role_name(role), weight.layer);
    }
    char what[64];
    std::snprintf(what, sizeof what, in_layer ? "%s of layer %d" : "%s", role_name(role), weight.layer);
    const size_t place = size_t(weight.layer * role_count + role);
    if ((*seen)[place]) return fail(EDGE_INVALID, "%s is given twice.", what);
    (*seen)[place] = true;

    const edge::LayerColumns &columns = runner_.shape.columns;
    if (in_layer) {
        return edge::set_in_layer(role, weight.matrix, what, runner_.shape, &layers_[size_t(weight.layer)]);
    }
    if (role == EDGE_FINAL_NORM) {
        return edge::set_vector(weight.matrix, what, columns.hidden, columns.hidden_stride, &final_norm_);
    }
    return edge::set_matrix(weight.matrix, what, config.vocab_size, columns.hidden,
                            role == EDGE_HEAD ? &untied_head_ : &embedding_);
}

edge_status edge_model::load(const edge_weight *weights, int64_t count) {
    std::vector<bool> seen(size_t(config.layers * role_count));
    bool with_biases = false, with_head_norms = false;
    for (int64_t i = 0; i < count; ++i) {
        if (const edge_status status = set_weight(weights[i], &seen)) return status;
        with_biases = with_biases || edge::is_bias(weights[i].role);
        with_head_norms = with_head_norms || edge::is_head_norm(weights[i].role);
    }
    for (int32_t layer = 0; layer < config.layers; ++layer) {
        for (int role = 0; role < role_count; ++role) {
            if (edge::is_of_draft(role)) continue;
            const bool wanted = edge::is_bias(role) ? with_biases
                                : edge::is_head_norm(role)
                                    ? with_head_norms
                                    : edge::is_in_layer(role) || (layer == 0 && role != EDGE_HEAD);
            if (wanted && !seen[size_t(layer * role_count + role)]) {
                return fail(EDGE_INVALID, "The %s of layer %d is missing.", role_name(role), layer);
            }
        }
    }
    allocate();
    return EDGE_OK;
}

edge_status edge_model::replace(const edge_weight *weights, int64_t count) {
    const Matrix embedding = embedding_, head = untied_head_;
    const edge::Vector norm = final_norm_;
    const std::vector<edge::Layer> layers = layers_;
    std::vector<bool> seen(size_t(config.layers * role_count));
    for (int64_t i = 0; i < count; ++i) {
        edge_status status = set_weight(weights[i], &seen);
        if (status == EDGE_OK && weights[i].role == EDGE_HEAD && head.data == nullptr) {
            status = fail(EDGE_INVALID, "The head is tied to the embedding: it can't be replaced by itself.");
        }
        if (status == EDGE_OK && is_absent(weights[i], layers)) {
            status = fail(EDGE_INVALID, "The model has no %s to replace.", role_name(weights[i].role));
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
    for (const edge::Layer &layer : layers_) runner_.plan(layer);
    runner_.plan(head());
    runner_.allocate();
    ids_.reserve(size_t(config.max_batch));
    running_.reserve(size_t(config.max_batch));
}
