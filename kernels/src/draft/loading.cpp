// Loads the weights of a draft by their roles, and makes its workspace.
#include <cstdio>

#include "abi/error.h"
#include "decoder/weights.h"
#include "draft/draft.h"

using edge::fail;
using edge::role_name;

namespace {

constexpr int most_roles = edge::role_count;

edge::LayerShape shape_of(const edge_model &target, const edge_draft_config &c) {
    std::vector<float> frequency(size_t(c.head_dim / 2), 0.0f);  // without rotary positions: no pair turns
    if (c.inverse_frequency) frequency.assign(c.inverse_frequency, c.inverse_frequency + c.head_dim / 2);
    const int64_t hidden = target.config.hidden_size;
    const int64_t query = int64_t(c.heads) * c.head_dim, kv = int64_t(c.kv_heads) * c.head_dim;
    return {
        {hidden, query, kv, c.intermediate_size, c.taps > 0 && c.block_size == 0 ? 2 * hidden : hidden},
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
      block_{draft_config.block_size, draft_config.mask_token, draft_config.anchor_tells != 0,
             draft_config.markov_rank, draft_config.confidence != 0},
      logit_scale_(draft_config.logit_scale),
      head_rows_(draft_config.head_rows > 0 ? draft_config.head_rows : target.config.vocab_size),
      head_tokens_(draft_config.head_tokens, draft_config.head_tokens + draft_config.head_rows),
      runner_(target.parallel, target.kernels, observer_, shape_of(target_model, draft_config)),
      layers_(size_t(draft_config.layers)),
      candidates_(head_rows_, std::max(EDGE_MAX_DRAFT_BRANCHES, draft_config.block_size),
                  target.parallel.workers) {}

bool edge_draft::has_weight(int role) const {
    if (role < 0 || role >= most_roles || role == EDGE_EMBEDDING || edge::is_bias(role)) return false;
    const bool block = block_.size > 0;
    switch (role) {
        case EDGE_HEAD:
            return !head_tokens_.empty();
        case EDGE_ATTENTION_NORM:
            return !joins();
        case EDGE_DRAFT_FC_BIAS:
        case EDGE_DRAFT_EMBEDDING_NORM:
            return !block;
        case EDGE_Q_NORM:
        case EDGE_K_NORM:
            return block;
        case EDGE_DRAFT_MARKOV_BEFORE:
        case EDGE_DRAFT_MARKOV_AFTER:
            return block_.rank > 0;
        case EDGE_DRAFT_CONFIDENCE:
        case EDGE_DRAFT_CONFIDENCE_BIAS:
            return block_.confidence;
        default:
            return true;
    }
}

// A norm that may be absent is not; nor are the biases and norms that are optional in every layer.
bool edge_draft::needs_weight(int role, int32_t layer) const {
    if (!has_weight(role)) return false;
    const bool block = block_.size > 0;
    switch (role) {
        case EDGE_ATTENTION_NORM:
            return layer > 0 || block;
        case EDGE_DRAFT_FC_BIAS:
        case EDGE_DRAFT_EMBEDDING_NORM:
        case EDGE_Q_NORM:
        case EDGE_K_NORM:
            return false;
        case EDGE_FINAL_NORM:
        case EDGE_DRAFT_HIDDEN_NORM:
            return layer == 0 && block;
        default:
            return edge::is_in_layer(role) || layer == 0;
    }
}

edge_status edge_draft::set_weight(const edge_weight &weight, std::vector<bool> *seen) {
    const int role = weight.role;
    if (!has_weight(role)) {
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
        case EDGE_DRAFT_MARKOV_BEFORE:
            return edge::set_matrix(weight.matrix, what, target.config.vocab_size, block_.rank,
                                    &markov_before_);
        case EDGE_DRAFT_MARKOV_AFTER:
            return edge::set_matrix(weight.matrix, what, head_rows_, block_.rank, &markov_after_);
        case EDGE_DRAFT_CONFIDENCE:
            return edge::set_vector(weight.matrix, what, columns.hidden + block_.rank,
                                    columns.hidden + block_.rank, &confidence_);
        case EDGE_DRAFT_CONFIDENCE_BIAS:
            return edge::set_vector(weight.matrix, what, 1, 1, &confidence_bias_);
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
        for (int role = EDGE_HEAD; role < most_roles; ++role) {
            if (needs_weight(role, layer) && !seen[size_t(layer * most_roles + role)]) {
                return fail(EDGE_INVALID, "The %s of a draft's layer %d is missing.", role_name(role), layer);
            }
        }
    }
    if (block_.size == 0 && embedding_norm_.empty() != hidden_norm_.empty()) {
        return fail(EDGE_INVALID, "A draft has both norms of its inputs, or none.");
    }
    if (joins() && hidden_norm_.empty()) {
        return fail(EDGE_INVALID, "A draft with taps has norms of what its attention reads.");
    }
    for (const edge::Layer &layer : layers_) runner_.plan(layer);
    planned_head_ = head();
    runner_.plan(fc_);
    runner_.plan(planned_head_);
    runner_.allocate();
    const size_t rows = EDGE_MAX_TREE, branches = EDGE_MAX_DRAFT_BRANCHES;
    if (block_.size == 0) joined_.resize(rows * size_t(joined_stride()));
    if (taps_ > 0) tapped_.resize(rows * size_t(edge::row_stride(fc_.columns)));
    if (block_.size == 0) unnormed_.resize(rows * size_t(runner_.shape.columns.hidden_stride));
    logits_.reset(size_t(logit_rows()) * size_t(head_rows_) * sizeof(float));
    before_.resize(size_t(block_.rank));
    after_.resize(size_t(block_.rank));
    leaves_.reserve(branches);
    masks_.reserve(branches);
    return EDGE_OK;
}

uint64_t edge_draft::workspace_bytes() const {
    return runner_.workspace_bytes() + (joined_.size() + tapped_.size() + unnormed_.size()) * sizeof(float) +
           uint64_t(logit_rows() * head_rows_) * sizeof(float) + candidates_.bytes();
}
