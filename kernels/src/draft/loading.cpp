// Loads the weights of a draft by their roles, and makes its workspace.
#include <cstdio>

#include "abi/error.h"
#include "decoder/weights.h"
#include "draft/draft.h"

using edge::fail;
using edge::role_name;

namespace {

constexpr int most_roles = EDGE_DRAFT_HIDDEN_NORM + 1;

edge::LayerShape shape_of(const edge_model &target, const edge_draft_config &c) {
    std::vector<float> frequency(size_t(c.head_dim / 2), 0.0f);  // without rotary positions: no pair turns
    if (c.inverse_frequency) frequency.assign(c.inverse_frequency, c.inverse_frequency + c.head_dim / 2);
    const int64_t hidden = target.config.hidden_size;
    const int64_t query = int64_t(c.heads) * c.head_dim, kv = int64_t(c.kv_heads) * c.head_dim;
    return {
        {hidden, query, kv, c.intermediate_size, c.taps > 0 ? 2 * hidden : hidden},
        {c.layers, c.kv_heads, c.head_dim, target.config.context + EDGE_MAX_TREE, edge_kv_type(c.kv_type)},
        c.heads,
        EDGE_MAX_TREE,
        c.window,
        {},
        edge_activations(target.config.activations),
        c.rms_norm_eps,
        c.residual_scale,
        c.rope_scale,
        frequency};
}

}  // namespace

edge_draft::edge_draft(const edge_model &target_model, const edge_draft_config &draft_config)
    : target(target_model),
      pools(shape_of(target_model, draft_config).cache, {}),
      layer_count_(draft_config.layers),
      taps_(draft_config.taps),
      logit_scale_(draft_config.logit_scale),
      head_rows_(draft_config.head_rows > 0 ? draft_config.head_rows : target.config.vocab_size),
      head_tokens_(draft_config.head_tokens, draft_config.head_tokens + draft_config.head_rows),
      runner_(target.parallel, target.kernels, observer_, shape_of(target_model, draft_config)),
      layers_(size_t(draft_config.layers)),
      candidates_(head_rows_, EDGE_MAX_DRAFT_BRANCHES, target.parallel.workers) {}

edge_status edge_draft::set_weight(const edge_weight &weight, std::vector<bool> *seen) {
    const int role = weight.role;
    const bool known = role >= 0 && role < most_roles && role != EDGE_EMBEDDING;
    if (!known || (role == EDGE_HEAD && head_tokens_.empty()) || (role == EDGE_ATTENTION_NORM && taps_ > 0)) {
        return fail(EDGE_INVALID, "A draft of this shape has no weight of role %d.", role);
    }
    if (weight.layer < 0 || weight.layer >= (edge::is_in_layer(role) ? layer_count_ : 1)) {
        return fail(EDGE_INVALID, "%s of a draft: layer %d does not exist.", role_name(role), weight.layer);
    }
    char what[64];
    std::snprintf(what, sizeof what, edge::is_in_layer(role) ? "%s of a draft's layer %d" : "%s of a draft",
                  role_name(role), weight.layer);
    const size_t place = size_t(weight.layer * most_roles + role);
    if ((*seen)[place]) return fail(EDGE_INVALID, "%s is given twice.", what);
    (*seen)[place] = true;

    const edge::LayerColumns &columns = runner_.shape.columns;
    const auto vector = [&](edge::Vector *out) {
        return edge::set_vector(weight.matrix, what, columns.hidden, columns.hidden_stride, out);
    };
    switch (role) {
        case EDGE_DRAFT_FC:
            return edge::set_matrix(weight.matrix, what, columns.hidden,
                                    (taps_ > 0 ? taps_ : 2) * columns.hidden, &fc_);
        case EDGE_DRAFT_FC_BIAS:
            return vector(&fc_bias_);
        case EDGE_DRAFT_EMBEDDING_NORM:
            return vector(&embedding_norm_);
        case EDGE_DRAFT_HIDDEN_NORM:
            return vector(&hidden_norm_);
        case EDGE_FINAL_NORM:
            return vector(&output_norm_);
        case EDGE_HEAD:
            return edge::set_matrix(weight.matrix, what, head_rows_, columns.hidden, &own_head_);
        default:
            return edge::set_in_layer(role, weight.matrix, what, runner_.shape,
                                      &layers_[size_t(weight.layer)]);
    }
}

edge_status edge_draft::load(const edge_weight *weights, int64_t count) {
    std::vector<bool> seen(size_t(layer_count_ * most_roles));
    for (int64_t i = 0; i < count; ++i) {
        if (const edge_status status = set_weight(weights[i], &seen)) return status;
    }
    for (int32_t layer = 0; layer < layer_count_; ++layer) {
        for (int role = EDGE_HEAD; role <= EDGE_DRAFT_FC; ++role) {
            const bool wanted = role == EDGE_FINAL_NORM       ? false
                                : role == EDGE_DRAFT_FC       ? layer == 0
                                : role == EDGE_HEAD           ? layer == 0 && !head_tokens_.empty()
                                : role == EDGE_ATTENTION_NORM ? layer > 0
                                                              : edge::is_in_layer(role);
            if (wanted && !seen[size_t(layer * most_roles + role)]) {
                return fail(EDGE_INVALID, "The %s of a draft's layer %d is missing.", role_name(role), layer);
            }
        }
    }
    if (embedding_norm_.empty() != hidden_norm_.empty()) {
        return fail(EDGE_INVALID, "A draft has both norms of its inputs, or none.");
    }
    if (taps_ > 0 && hidden_norm_.empty()) {
        return fail(EDGE_INVALID, "A draft with taps has norms of what its attention reads.");
    }
    for (const edge::Layer &layer : layers_) runner_.plan(layer);
    planned_head_ = head();
    runner_.plan(fc_);
    runner_.plan(planned_head_);
    runner_.allocate();
    const size_t rows = EDGE_MAX_TREE, branches = EDGE_MAX_DRAFT_BRANCHES;
    joined_.resize(rows * size_t(joined_stride()));
    if (taps_ > 0) tapped_.resize(rows * size_t(edge::row_stride(fc_.columns)));
    unnormed_.resize(rows * size_t(runner_.shape.columns.hidden_stride));
    logits_.reset(branches * size_t(head_rows_) * sizeof(float));
    leaves_.reserve(branches);
    masks_.reserve(branches);
    return EDGE_OK;
}

uint64_t edge_draft::workspace_bytes() const {
    return runner_.workspace_bytes() + (joined_.size() + tapped_.size() + unnormed_.size()) * sizeof(float) +
           EDGE_MAX_DRAFT_BRANCHES * uint64_t(head_rows_) * sizeof(float) + candidates_.bytes();
}
