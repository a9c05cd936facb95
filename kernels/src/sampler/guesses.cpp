// edge_draw_along: the model's own tokens along the guesses of a step, as far as these are right.
#include <cstdint>

#include "abi/error.h"
#include "edge.h"

namespace edge::sampler {
namespace {

edge_status check_arguments(const edge_draw *draw, const edge_step *step, const edge_drawn *drawn) {
    if (!draw || !step || !drawn) {
        return fail(EDGE_INVALID, "edge_draw_along needs a draw, a step and a place.");
    }
    if (step->size != sizeof(edge_step) || draw->size != sizeof(edge_draw)) {
        return fail(EDGE_INVALID, "edge_step or edge_draw has another size here: rebuild the library.");
    }
    if (step->n < 1 || step->n > EDGE_MAX_TREE || step->logits_count != step->n || step->soft_count ||
        !step->tokens) {
        return fail(EDGE_INVALID, "Tokens are drawn along a step of 1 to %d tokens that all have logits.",
                    EDGE_MAX_TREE);
    }
    if (draw->history_length || draw->allowed) {
        return fail(EDGE_INVALID, "Along guesses, tokens are drawn without penalties and masks.");
    }
    return EDGE_OK;
}

// The last row that row i > 0 sees beside itself; -1 if it sees none.
int32_t parent_of(const edge_step &step, int32_t i) {
    if (!step.tree) return i - 1;
    const uint64_t before = step.tree[i] & ((uint64_t(1) << i) - 1);
    return before ? 63 - __builtin_clzll(before) : -1;
}

// The first row behind `row` that bears the token; -1 if none does.
int32_t guess_of(const edge_step &step, int32_t row, int32_t token) {
    for (int32_t i = row + 1; i < step.n; ++i) {
        if (step.tokens[i] == token && parent_of(step, i) == row) return i;
    }
    return -1;
}

}  // namespace
}  // namespace edge::sampler

edge_status edge_draw_along(const edge_sampling *sampling, const edge_draw *draw, const edge_step *step,
                            edge_drawn *drawn) {
    if (const edge_status status = edge::sampler::check_arguments(draw, step, drawn)) return status;
    edge_draw next = *draw;
    edge_sample_result found;
    drawn->count = 0;
    for (int32_t row = 0;;) {
        next.logits = draw->logits + int64_t(row) * draw->vocab_size;
        if (const edge_status status = edge_sample(sampling, &next, &found)) return status;
        drawn->tokens[drawn->count++] = found.token;
        row = edge::sampler::guess_of(*step, row, found.token);
        if (row < 0) return EDGE_OK;
        drawn->rows[drawn->count - 1] = row;
        ++next.index;
    }
}
