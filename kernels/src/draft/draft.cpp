// Appends rows with true hidden states, then tries a tree of tokens in steps.
#include "draft/draft.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>

#include "abi/error.h"
#include "decoder/layer.h"

using edge::fail;
using edge::parallel_for;

namespace {

using Clock = std::chrono::steady_clock;

float seconds_since(Clock::time_point start) {
    return std::chrono::duration<float>(Clock::now() - start).count();
}

// Whether the inputs that were planned for one matrix serve the other.
bool are_alike(const edge::Matrix &a, const edge::Matrix &b) {
    return a.kind == b.kind && a.minimum == b.minimum && a.rows == b.rows && a.group == b.group;
}

}  // namespace

edge_status edge_draft::check(const edge_draft_step &step) const {
    const int64_t length = step.cache->length, context = target.config.context;
    if (!step.cache->takes_from(pools)) {
        return fail(EDGE_INVALID, "The cache belongs to another draft or model.");
    }
    if (!are_alike(head(), planned_head_)) {
        return fail(EDGE_INVALID, "The target's head is of another kind now: make its drafts again.");
    }
    if (step.n <= 0 || step.n > context || length + step.n > context || step.position < length ||
        step.position > context - step.n) {
        return fail(EDGE_CONTEXT,
                    "%d rows after %d from position %lld on do not fit the context of %d tokens.", step.n,
                    int(length), (long long)step.position, int(context));
    }
    for (int32_t i = 0; i < step.n; ++i) {
        if (step.tokens[i] < 0 || step.tokens[i] >= target.config.vocab_size) {
            return fail(EDGE_VOCABULARY, "Token id %d at place %d is outside the vocabulary of %d.",
                        step.tokens[i], i, target.config.vocab_size);
        }
    }
    if (!target.kernels.all_finite(step.hidden, step.n * hidden_columns())) {
        return fail(EDGE_NOT_FINITE, "A hidden state for the draft is not finite.");
    }
    if (step.steps == 0) return EDGE_OK;
    if (step.branches < 1 || step.branches > std::min(EDGE_MAX_DRAFT_BRANCHES, head_rows_) ||
        step.steps < 0 || step.steps > EDGE_MAX_TREE) {
        return fail(EDGE_INVALID, "A draft takes 0 to %d steps with 1 to %d branches, got %d with %d.",
                    EDGE_MAX_TREE, std::min(EDGE_MAX_DRAFT_BRANCHES, head_rows_), step.steps, step.branches);
    }
    const int64_t most = step.branches + (step.steps - 1) * int64_t(step.branches) * step.branches;
    if (!step.node_tokens || !step.node_parents || !step.node_logprobs || step.node_room < most) {
        return fail(EDGE_INVALID, "%d steps with %d branches try %lld tokens: give that much room.",
                    step.steps, step.branches, (long long)most);
    }
    return EDGE_OK;
}

edge_status edge_draft::run(edge_draft_step *step) {
    step->node_count = step->steps_run = 0;
    if (const edge_status status = check(*step)) return status;
    const int64_t before = step->cache->length;
    nodes_.clear();
    int64_t done = 0;
    edge_status status = EDGE_OK;
    Clock::time_point start = Clock::now();
    const auto finish_step = [&] {
        if (step->seconds != nullptr) step->seconds[step->steps_run] = seconds_since(start);
        ++step->steps_run;
        start = Clock::now();
    };
    while (status == EDGE_OK && done < step->n) {
        const int64_t n = std::min<int64_t>(step->n - done, EDGE_MAX_TREE);
        status = append(*step, done, n, step->steps > 0 && block_.size == 0 && done + n == step->n);
        done += n;
    }
    const int64_t length = step->cache->length;
    if (status == EDGE_OK && step->steps > 0) {
        if (block_.size > 0) {
            status = run_block(*step);
            if (status == EDGE_OK) add_block_nodes(*step);
        } else {
            status = add_nodes(step, 1);
        }
        if (status == EDGE_OK) finish_step();
    }
    int64_t earlier = 0;
    while (status == EDGE_OK && step->steps_run > 0 && step->steps_run < most_steps(*step) &&
           choose_leaves(*step, earlier)) {
        if (block_.size > 0) {
            add_block_nodes(*step);
        } else {
            status = next_step(step, step->position + step->n + step->steps_run - 1, earlier);
            earlier += int64_t(leaves_.size());
        }
        if (status == EDGE_OK) finish_step();
    }
    step->cache->cut(status == EDGE_OK ? length : before);
    if (status != EDGE_OK) return status;
    for (const Node &node : nodes_) {
        step->node_tokens[step->node_count] = node.token;
        step->node_parents[step->node_count] = node.parent;
        step->node_logprobs[step->node_count++] = node.logprob;
    }
    return EDGE_OK;
}

// Rows first .. first + n of the step into the cache. The last layer needs no more than their keys and values, but for
// the last row where the draft goes `onward` from it.
edge_status edge_draft::append(const edge_draft_step &step, int64_t first, int64_t n, bool onward) {
    const int64_t length = step.cache->length;
    if (const edge_status status = step.cache->make_room(length, length + n)) return status;
    runner_.begin();
    runner_.add({step.cache, 0, n, length, nullptr});
    if (taps_ > 0) make_features(step, first, n);
    if (block_.size > 0) {
        append_context(step, first, n);
        step.cache->length = length + n;
        return EDGE_OK;
    }
    parallel_for(target.parallel, n, 1, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t row = begin; row < end; ++row) {
            const float *known = step.hidden + (first + row) * hidden_columns();
            join(row, step.tokens[first + row], taps_ > 0 ? runner_.hidden(row) : known);
            runner_.rotate(row, step.position + first + row);
        }
    });
    if (taps_ == 0) run_fc(joined_, n);
    for (int32_t index = 0; index < layer_count_; ++index) {
        const edge::Layer &layer = layers_[size_t(index)];
        const bool last = index == layer_count_ - 1;
        runner_.store_rows(layer, index, !last || onward, read_by(index));
        if (last && !onward) break;
        if (last) runner_.keep_last();
        runner_.attend(layer, index);
        runner_.mlp_block(layer, index);
    }
    step.cache->length = length + n;
    return EDGE_OK;
}

// With taps: the residual stream of rows first .. first + n of the step = fc of the target's hidden states.
void edge_draft::make_features(const edge_draft_step &step, int64_t first, int64_t n) {
    const int64_t size = hidden_columns(), stride = edge::row_stride(size);
    for (int64_t row = 0; row < n; ++row) {
        std::memcpy(&tapped_[size_t(row * stride)], step.hidden + (first + row) * size,
                    size_t(size) * sizeof(float));
    }
    run_fc(tapped_, n);
}

// A joined row: the token's embedding and a hidden state, through their norms.
void edge_draft::join(int64_t row, int32_t token, const float *state) {
    const edge::LayerShape &shape = runner_.shape;
    const int64_t size = shape.columns.hidden, stride = shape.columns.hidden_stride;
    float *const halves[] = {&joined_[size_t(row * joined_stride())],
                             &joined_[size_t(row * joined_stride() + size)]};
    const edge::Vector *const norms[] = {&embedding_norm_, &hidden_norm_};
    float *const plain = &unnormed_[size_t(row * stride)], *const normed = runner_.normed(row);
    for (int half = 0; half < 2; ++half) {
        if (half == 0) {
            edge::embed_token(target.embedding(), token, target.config.embedding_scale, plain);
        } else {
            std::memcpy(plain, state, size_t(size) * sizeof(float));
        }
        const float *from = plain;
        if (!norms[half]->empty()) {
            target.kernels.rms_norm(plain, norms[half]->data(), shape.norm_eps, 1.0f, size, stride, normed);
            from = normed;
        }
        std::memcpy(halves[half], from, size_t(size) * sizeof(float));
    }
}

// The residual stream of `rows` tokens = fc of these rows.
void edge_draft::run_fc(const std::vector<float> &inputs, int64_t rows) {
    const edge::LayerColumns &columns = runner_.shape.columns;
    runner_.input().prepare(target.parallel, target.kernels, inputs.data(), edge::row_stride(fc_.columns),
                            rows, {&fc_}, [](int64_t) {});
    const edge::LinearJob job{&fc_, runner_.hidden(0),      columns.hidden_stride, false,
                              1.0f, edge::data_of(fc_bias_)};
    run_linear(target.parallel, target.kernels, runner_.input(), rows, &job, 1);
}

// Of the nodes that the last step tried those that the next one goes on from: the best, as far as a child of theirs may be
// worth a row. False if there are none, or if they promise less together than the step has to bring.
bool edge_draft::choose_leaves(const edge_draft_step &step, int64_t earlier) {
    float least = step.least_logprob;
    if (int64_t(nodes_.size()) >= step.rows && step.rows > 0) {
        scores_.clear();
        for (const Node &node : nodes_) scores_.push_back(node.logprob);
        const auto place = scores_.begin() + (step.rows - 1);
        std::nth_element(scores_.begin(), place, scores_.end(), std::greater<float>());
        least = std::max(least, std::nextafter(*place, 1.0f));  // a child is no likelier than its parent
    }
    leaves_.clear();
    for (int64_t node = first_node_; node < int64_t(nodes_.size()); ++node) {
        if (nodes_[size_t(node)].logprob >= least) leaves_.push_back(node);
    }
    std::stable_sort(leaves_.begin(), leaves_.end(), [&](int64_t a, int64_t b) {
        return nodes_[size_t(a)].logprob > nodes_[size_t(b)].logprob;
    });
    const int64_t most = std::min<int64_t>(step.branches, EDGE_MAX_TREE - earlier);
    if (int64_t(leaves_.size()) > most) leaves_.resize(size_t(most));
    if (leaves_.empty() || step.least_gains == nullptr) return !leaves_.empty();
    float promised = 0.0f;
    for (const int64_t leaf : leaves_) promised += std::exp(nodes_[size_t(leaf)].logprob);
    return promised >= step.least_gains[step.steps_run];
}

// A row for every leaf, behind `earlier` rows of former steps; `position` is theirs.
edge_status edge_draft::next_step(edge_draft_step *step, int64_t position, int64_t earlier) {
    const int64_t length = step->cache->length, n = int64_t(leaves_.size());
    const int64_t first = length + earlier;
    if (const edge_status status = step->cache->make_room(first, first + n)) return status;
    masks_.clear();
    for (int64_t row = 0; row < n; ++row) {
        Node &leaf = nodes_[size_t(leaves_[size_t(row)])];
        leaf.mask |= uint64_t(1) << (earlier + row);
        masks_.push_back(leaf.mask);
    }
    parallel_for(target.parallel, n, 1, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t row = begin; row < end; ++row) {
            const Node &leaf = nodes_[size_t(leaves_[size_t(row)])];
            join(row, leaf.token, runner_.hidden(leaf.row));
        }
    });
    runner_.begin();
    runner_.add({step->cache, 0, n, length, masks_.data(), earlier});
    for (int64_t row = 0; row < n; ++row) runner_.rotate(row, position);
    if (taps_ > 0) {  // the residual streams of the leaves' rows, in the order of the leaves
        const edge::LayerColumns &columns = runner_.shape.columns;
        for (int64_t row = 0; row < n; ++row) {
            std::memcpy(runner_.hidden(row), &unnormed_[size_t(row * columns.hidden_stride)],
                        size_t(columns.hidden) * sizeof(float));
        }
    } else {
        run_fc(joined_, n);
    }
    for (int32_t index = 0; index < layer_count_; ++index) {
        runner_.attention_block(layers_[size_t(index)], index, read_by(index));
        runner_.mlp_block(layers_[size_t(index)], index);
    }
    return add_nodes(step, n);
}

// The likeliest children of the tokens whose states the first `rows` rows hold: of the leaves, or of the root.
edge_status edge_draft::add_nodes(edge_draft_step *step, int64_t rows) {
    const edge::LayerColumns &columns = runner_.shape.columns;
    float *logits = reinterpret_cast<float *>(logits_.data());
    const auto scale = [&](int64_t row) {
        if (!output_norm_.empty()) return runner_.norm_row(output_norm_, logit_scale_, row, row);
        const float *state = runner_.hidden(row);
        float *scaled = runner_.normed(row);
        for (int64_t i = 0; i < columns.hidden; ++i) scaled[i] = state[i] * logit_scale_;
    };
    runner_.input().prepare(target.parallel, target.kernels, runner_.normed(0), columns.hidden_stride, rows,
                            {&head()}, scale);
    const edge::LinearJob job{&head(), logits, head_rows_};
    run_linear(target.parallel, target.kernels, runner_.input(), rows, &job, 1);
    if (!candidates_.find(target.parallel, logits, rows, step->branches)) {
        return fail(EDGE_NOT_FINITE, "The logits of the draft are not finite: its weights are damaged.");
    }
    const bool from_root = nodes_.empty();
    first_node_ = int64_t(nodes_.size());
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t parent = from_root ? -1 : leaves_[size_t(row)];
        const float before = from_root ? 0.0f : nodes_[size_t(parent)].logprob;
        const uint64_t mask = from_root ? 0 : nodes_[size_t(parent)].mask;
        for (int32_t i = 0; i < step->branches; ++i) {
            const edge::Candidate &candidate = candidates_.of(row)[i];
            const int32_t token =
                head_tokens_.empty() ? candidate.index : head_tokens_[size_t(candidate.index)];
            nodes_.push_back({token, int32_t(parent), before + candidate.logprob, row, mask});
        }
    }
    return EDGE_OK;
}
