// Block drafts: keys and values of known tokens, one pass of a block, and the tokens that its rows tell.
#include <algorithm>
#include <cmath>

#include "abi/error.h"
#include "decoder/layer.h"
#include "draft/draft.h"

using edge::fail;
using edge::parallel_for;

namespace {

constexpr float least_rest =
    1e-6f;  // of a row's probability, that may be left for all tokens but the likeliest

// log(1 / (1 + exp(-x)))
float log_sigmoid(float x) { return std::min(x, 0.0f) - std::log1p(std::exp(-std::abs(x))); }

float dot(const float *a, const float *b, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) sum += double(a[i]) * b[i];
    return float(sum);
}

}  // namespace

// The residual stream of the pass's rows is what fc made: their keys and values into the cache.
void edge_draft::append_context(const edge_draft_step &step, int64_t first, int64_t n) {
    parallel_for(target.parallel, n, 1, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t row = begin; row < end; ++row) {
            runner_.norm_row(hidden_norm_, 1.0f, row, row);
            runner_.rotate(row, step.position + first + row);
        }
    });
    const edge::Rows context{runner_.normed(0), runner_.shape.columns.hidden_stride};
    for (int32_t index = 0; index < layer_count_; ++index) {
        runner_.store_rows(layers_[size_t(index)], index, false, context);
    }
}

// A block behind the rows of the cache, and the likeliest tokens of as many of its rows as there are steps.
edge_status edge_draft::run_block(const edge_draft_step &step) {
    const int64_t length = step.cache->length, n = block_.size;
    if (const edge_status status = step.cache->make_room(length, length + n)) return status;
    masks_.assign(size_t(n), ~uint64_t(0) >> (64 - n));  // every row sees all of them
    runner_.begin();
    runner_.add({step.cache, 0, n, length, masks_.data()});
    parallel_for(target.parallel, n, 1, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t row = begin; row < end; ++row) {
            const int32_t token = row == 0 ? step.tokens[step.n - 1] : block_.mask_token;
            edge::embed_token(target.embedding(), token, target.config.embedding_scale, runner_.hidden(row));
            runner_.rotate(row, step.position + step.n + row);
        }
    });
    for (int32_t index = 0; index < layer_count_; ++index) {
        runner_.attention_block(layers_[size_t(index)], index);
        runner_.mlp_block(layers_[size_t(index)], index);
    }
    const int64_t first = first_row(), rows = most_steps(step);
    float *logits = reinterpret_cast<float *>(logits_.data());
    runner_.input().prepare(target.parallel, target.kernels, runner_.normed(first),
                            runner_.shape.columns.hidden_stride, rows, {&head()}, [&](int64_t row) {
                                runner_.norm_row(output_norm_, logit_scale_, first + row, first + row);
                            });
    const edge::LinearJob job{&head(), logits, head_rows_};
    run_linear(target.parallel, target.kernels, runner_.input(), rows, &job, 1);
    const int64_t wanted =
        block_.rank > 0 ? std::max(step.branches, EDGE_DRAFT_MARKOV_CANDIDATES) : step.branches;
    children_.resize(size_t(std::min<int64_t>(wanted, head_rows_)));
    if (!candidates_.find(target.parallel, logits, rows, int64_t(children_.size()))) {
        return fail(EDGE_NOT_FINITE, "The logits of the draft are not finite: its weights are damaged.");
    }
    return EDGE_OK;
}

// The children of the root, or of the leaves, from the next row of the block.
void edge_draft::add_block_nodes(const edge_draft_step &step) {
    const bool from_root = nodes_.empty();
    first_node_ = int64_t(nodes_.size());
    if (from_root) leaves_.assign(1, -1);
    for (const int64_t leaf : leaves_) add_children(step, leaf, step.steps_run);
}

// row: of those that tell tokens.
void edge_draft::add_children(const edge_draft_step &step, int64_t leaf, int64_t row) {
    const int32_t before = leaf < 0 ? step.tokens[step.n - 1] : nodes_[size_t(leaf)].token;
    if (block_.rank > 0) dequantize_row(markov_before_, before, before_.data());
    std::copy_n(candidates_.of(row), children_.size(), children_.begin());
    if (block_.rank > 0) {
        double known = 0.0, total = 0.0;
        for (edge::Candidate &child : children_) {
            known += std::exp(double(child.logprob));
            dequantize_row(markov_after_, child.index, after_.data());
            child.logprob += dot(before_.data(), after_.data(), block_.rank);
            total += std::exp(double(child.logprob));
        }
        total += std::max(0.0, 1.0 - known);  // of the tokens whose logits stay as they are
        for (edge::Candidate &child : children_) child.logprob -= float(std::log(total));
        std::stable_sort(
            children_.begin(), children_.end(),
            [](const edge::Candidate &a, const edge::Candidate &b) { return a.logprob > b.logprob; });
    }
    if (block_.confidence) {
        const float sure = confidence(row), first = log_sigmoid(sure), left = log_sigmoid(-sure);
        const float rest = std::log(std::max(least_rest, 1.0f - std::exp(children_[0].logprob)));
        for (edge::Candidate &child : children_) {
            child.logprob = std::min(first, left + std::min(0.0f, child.logprob - rest));
        }
        children_[0].logprob = first;
    }
    const float along = leaf < 0 ? 0.0f : nodes_[size_t(leaf)].logprob;
    for (int32_t i = 0; i < step.branches; ++i) {
        const edge::Candidate &child = children_[size_t(i)];
        const int32_t token = head_tokens_.empty() ? child.index : head_tokens_[size_t(child.index)];
        nodes_.push_back({token, int32_t(leaf), along + child.logprob, row, 0});
    }
}

// The logit of the chance that the likeliest token of a row is right, behind the token whose row of the Markov head was
// read last.
float edge_draft::confidence(int64_t row) {
    const int64_t hidden = runner_.shape.columns.hidden;
    const float *state = runner_.normed(first_row() + row);  // with the scale of the head's inputs
    return dot(state, confidence_.data(), hidden) / logit_scale_ +
           dot(before_.data(), confidence_.data() + hidden, block_.rank) + confidence_bias_[0];
}
