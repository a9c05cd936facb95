// A draft: a small network beside a model, its target, that guesses how a sequence goes on (EAGLE-2, arXiv 2406.16858).
//
// Row i joins the target's embedding of token i + 1 with its hidden state of token i; what the layers make of it stands
// for the hidden state of token i + 1, from which a head tells token i + 2. Where a true hidden state is missing, such a
// guess takes its place; rows that came about so are dropped after the call. With taps (EAGLE-3, arXiv 2503.01840) fc
// makes the hidden state of several of the target's, and the embedding joins it where attention reads.
//
// A block draft (DSpark; DFlash, arXiv 2602.06036) has rows of fc's states alone, of which attention needs keys and
// values, and guesses from a block of rows in one pass: step k of the tree is told by row k of the block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention/cache.h"
#include "decoder/decoder.h"
#include "decoder/layer_runner.h"
#include "draft/candidates.h"
#include "memory/aligned.h"

struct edge_draft {
    edge_draft(const edge_model &target_model, const edge_draft_config &draft_config);

    edge_status load(const edge_weight *weights, int64_t count);
    edge_status run(edge_draft_step *step);
    edge::CacheShape cache_shape() const { return runner_.shape.cache; }
    uint64_t workspace_bytes() const;
    // Of the target, whose hidden states a row is made of.
    int32_t hidden_layers() const { return std::max(1, taps_); }

    const edge_model &target;
    const edge::CachePools pools;

   private:
    // A token that was tried: its path, and the row of the workspace whose head told it.
    struct Node {
        int32_t token, parent;
        float logprob;
        int64_t row;
        uint64_t mask;  // of the rows of its path, without one of its own
    };

    // Whether a draft of this shape may have, or must have, a weight of a role.
    bool has_weight(int role) const;
    bool needs_weight(int role, int32_t layer) const;
    edge_status set_weight(const edge_weight &weight, std::vector<bool> *seen);
    edge_status check(const edge_draft_step &step) const;
    edge_status append(const edge_draft_step &step, int64_t first, int64_t n, bool onward);
    bool choose_leaves(const edge_draft_step &step, int64_t earlier);
    edge_status next_step(edge_draft_step *step, int64_t position, int64_t earlier);
    edge_status add_nodes(edge_draft_step *step, int64_t rows);
    // Of a block draft, in block.cpp.
    void append_context(const edge_draft_step &step, int64_t first, int64_t n);
    edge_status run_block(const edge_draft_step &step);
    void add_block_nodes(const edge_draft_step &step);
    void add_children(const edge_draft_step &step, int64_t leaf, int64_t row);
    float confidence(int64_t row);
    int64_t first_row() const { return block_.anchor_tells ? 0 : 1; }
    int64_t most_steps(const edge_draft_step &step) const {
        return block_.size > 0 ? std::min<int64_t>(step.steps, block_.size - first_row()) : step.steps;
    }

    void make_features(const edge_draft_step &step, int64_t first, int64_t n);
    void join(int64_t row, int32_t token, const float *state);
    void run_fc(const std::vector<float> &inputs, int64_t rows);
    int64_t hidden_columns() const { return hidden_layers() * int64_t(target.config.hidden_size); }
    int64_t joined_stride() const { return edge::row_stride(2 * runner_.shape.columns.hidden); }
    // Whether the embedding joins what fc makes where attention reads.
    bool joins() const { return taps_ > 0 && block_.size == 0; }
    // What the layer's attention reads: the joined rows.
    edge::Rows read_by(int32_t layer) const {
        return layer == 0 && joins() ? edge::Rows{joined_.data(), joined_stride()} : edge::Rows{};
    }
    // That are computed at once: of a block, or of the leaves of a step.
    int64_t logit_rows() const { return block_.size > 0 ? block_.size : EDGE_MAX_DRAFT_BRANCHES; }
    const edge::Matrix &head() const { return own_head_.data ? own_head_ : target.head(); }

    // The rows of a block, and its small heads.
    struct Block {
        int32_t size, mask_token;
        bool anchor_tells;
        int32_t rank;
        bool confidence;
    };

    const int32_t layer_count_, taps_;
    const Block block_;
    const float logit_scale_;
    const int32_t head_rows_;
    const std::vector<int32_t> head_tokens_;
    edge::Observer observer_;  // nobody listens
    edge::LayerRunner runner_;
    edge::Matrix fc_, own_head_, planned_head_;
    edge::Vector fc_bias_, embedding_norm_, hidden_norm_, output_norm_;
    std::vector<edge::Layer> layers_;
    edge::Matrix markov_before_, markov_after_;
    edge::Vector confidence_, confidence_bias_;

    // One row per token: embedding and hidden state side by side, each of them before its norm, and what is tapped.
    std::vector<float> joined_, unnormed_, tapped_;
    edge::AlignedMemory logits_;
    edge::Candidates candidates_;
    std::vector<Node> nodes_;
    int64_t first_node_ = 0;       // of those that the last step tried
    std::vector<int64_t> leaves_;  // nodes that the next step goes on from
    std::vector<uint64_t> masks_;  // of the leaves' rows
    std::vector<float> scores_;
    std::vector<float> before_, after_;  // rows of the Markov head
    std::vector<edge::Candidate> children_;
};
