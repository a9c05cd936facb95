// edge_sample: options, history, bias and logits of any value; and edge_draw_along, with any tree.
#include <cmath>
#include <vector>

#include "edge.h"
#include "fuzz.h"

namespace {

// Rows of guesses whose logits are those of the first one, moved on by a token for each.
void draw_along(Input *input, const edge_sampling &sampling, edge_draw draw,
                const std::vector<float> &logits) {
    const int32_t rows = int32_t(1 + input->below_or(EDGE_MAX_TREE - 1)), vocab = draw.vocab_size;
    std::vector<int32_t> tokens(size_t(rows), 0);
    std::vector<uint64_t> tree(size_t(rows), 0);
    input->take(tokens.data(), tokens.size());
    for (size_t row = 0; row < tokens.size(); row += 2) {
        tokens[row] = int32_t(uint32_t(tokens[row]) % uint32_t(vocab));
    }
    const bool branches = (input->take<uint8_t>() & 1) != 0;
    input->take(tree.data(), branches ? tree.size() : 0);
    std::vector<float> all;
    for (int32_t row = 0; row < rows; ++row) {
        const auto first = logits.begin() + row % vocab;
        all.insert(all.end(), first, logits.end());
        all.insert(all.end(), logits.begin(), first);
    }
    edge_step step{};
    step.size = sizeof step;
    step.n = step.logits_count = rows;
    step.tokens = tokens.data();
    step.tree = branches ? tree.data() : nullptr;
    draw.logits = all.data();
    edge_drawn drawn;
    const bool may_not = draw.history_length > 0 || draw.allowed;
    const edge_status refused = edge_draw_along(&sampling, &draw, &step, &drawn);
    require(!may_not || refused == EDGE_INVALID);
    draw.history_length = 0;
    draw.allowed = nullptr;
    if (edge_draw_along(&sampling, &draw, &step, &drawn) != EDGE_OK) {
        require(std::strlen(edge_last_error()) > 10);
        return;
    }
    require(drawn.count >= 1 && drawn.count <= rows);
    edge_sample_result one;
    for (int32_t i = 0, row = 0; i < drawn.count; ++i) {
        draw.logits = all.data() + int64_t(row) * vocab;
        require(edge_sample(&sampling, &draw, &one) == EDGE_OK && one.token == drawn.tokens[i]);
        ++draw.index;
        if (i + 1 < drawn.count) {
            require(drawn.rows[i] > row && drawn.rows[i] < rows);
            row = drawn.rows[i];
            require(tokens[size_t(row)] == drawn.tokens[i]);
        }
    }
}

}  // namespace

bool accepts(Input input) {
    const int32_t vocab = int32_t(1 + input.below_or(1500));
    edge_sampling sampling = input.take<edge_sampling>();
    sampling.size = sizeof sampling;
    const uint8_t calm =
        input.take<uint8_t>();  // options that are in range, so that more is reached than the checks
    const auto share = [&](float *value) { *value = float(input.take<uint16_t>()) / 65535.0f; };
    if (calm & 1) {
        sampling.temperature = float(input.take<uint8_t>()) / 64.0f;
        sampling.top_k = int32_t(input.below_or(vocab + 1));
        for (float *value : {&sampling.top_p, &sampling.min_p, &sampling.typical_p}) share(value);
        sampling.repetition_penalty = 0.5f + float(input.take<uint8_t>()) / 128.0f;
        sampling.frequency_penalty = float(input.take<int8_t>()) / 32.0f;
        sampling.presence_penalty = float(input.take<int8_t>()) / 32.0f;
        sampling.logprobs = int32_t(input.below_or(EDGE_MAX_LOGPROBS));
    }
    const auto ids = [&](int64_t most) {
        std::vector<int32_t> tokens(size_t(input.below_or(most)));
        for (int32_t &token : tokens) {
            token = int32_t(calm & 2 ? input.below_or(vocab - 1) : input.take<int32_t>());
        }
        return tokens;
    };
    const std::vector<int32_t> history = ids(40), biased = ids(10);
    std::vector<float> bias(biased.size()), logits(size_t(vocab), 0.0f);
    input.take(bias.data(), bias.size());
    edge_draw draw{};
    draw.size = sizeof draw;
    draw.seed = input.take<uint64_t>();
    std::vector<uint32_t> allowed(size_t(calm & 4 ? (vocab + 31) / 32 : 0));
    input.take(allowed.data(), allowed.size());
    const size_t given = std::min(logits.size(), input.left() / (calm & 8 ? 1 : sizeof(float)));
    for (size_t i = 0; i < logits.size(); ++i) {
        if (i < given) {
            logits[i] = calm & 8 ? float(input.take<int8_t>()) / 8.0f : input.take<float>();
        } else {
            logits[i] = given > 0 ? logits[i - given] : 0.0f;
        }
    }
    edge_sample_result result;
    draw.vocab_size = vocab;
    draw.logits = logits.data();
    draw.allowed = allowed.empty() ? nullptr : allowed.data();
    draw.history = history.data();
    draw.history_length = int32_t(history.size());
    draw.bias_tokens = biased.data();
    draw.bias_values = bias.data();
    draw.bias_count = int32_t(bias.size());
    draw.want_logprob = input.take<uint8_t>() & 1;
    const edge_status status = edge_sample(&sampling, &draw, &result);
    if (status != EDGE_OK) {
        require(std::strlen(edge_last_error()) > 10);
        return false;
    }
    require(result.token >= 0 && result.token < vocab);
    require(logits[size_t(result.token)] > -INFINITY);
    require(allowed.empty() || (allowed[size_t(result.token / 32)] >> (result.token % 32) & 1));
    for (int32_t i = 0; i < sampling.logprobs; ++i) {
        require(result.top_tokens[i] >= -1 && result.top_tokens[i] < vocab);
        require(i == 0 || result.top_logprobs[i] <= result.top_logprobs[i - 1]);
    }
    draw_along(&input, sampling, draw, logits);
    return true;
}
