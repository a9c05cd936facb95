// edge_decode: a pass, the tokens that it gives, and what a draft makes of them, in one call. Between two calls the weights
// drive what the caller needs for them out of the processor's caches.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "abi/border.h"
#include "abi/error.h"
#include "decoder/decoder.h"
#include "draft/draft.h"
#include "threads/pool.h"

using edge::fail;
using edge::guarded;

namespace {

edge_status check_decoding(const edge_model &model, const edge_step &step, const edge_decoding &decoding) {
    if (decoding.size != sizeof(edge_decoding)) {
        return fail(EDGE_INVALID,
                    "edge_decoding has another size here: the library and its caller differ in version.");
    }
    if (!decoding.sampling || !decoding.draw || !decoding.drawn || !step.tokens) {
        return fail(EDGE_INVALID, "edge_decode: an argument is missing.");
    }
    if (step.n < 1 || step.n > EDGE_MAX_TREE || step.logits_count != step.n || step.soft_count) {
        return fail(EDGE_INVALID, "edge_decode takes steps of 1 to %d tokens that all have logits.",
                    EDGE_MAX_TREE);
    }
    if (decoding.draw->size != sizeof(edge_draw) || decoding.draw->vocab_size != model.config.vocab_size) {
        return fail(EDGE_INVALID, "edge_decode: the draw is not of this vocabulary or version.");
    }
    if (!decoding.draft) return EDGE_OK;
    if (&decoding.draft->target != &model) {
        return fail(EDGE_INVALID, "edge_decode: the draft is of another model.");
    }
    if (!decoding.draft_step || !decoding.draft_step->cache || !decoding.draft_tokens ||
        !decoding.draft_hidden || decoding.draft_step->size != sizeof(edge_draft_step)) {
        return fail(EDGE_INVALID, "edge_decode: an argument of the draft is missing.");
    }
    const int32_t layers = decoding.draft->hidden_layers();
    if (step.layer_outputs ? step.layer_count != layers : layers > 1 || !step.hidden) {
        return fail(EDGE_INVALID, "edge_decode: the step lacks the hidden states that the draft needs.");
    }
    return EDGE_OK;
}

// The token after the first row of a step and those after the guesses that are right; the cache keeps these rows.
edge_status draw(edge_step *step, const edge_decoding &decoding) {
    edge_drawn *drawn = decoding.drawn;
    if (const edge_status status = edge_draw_along(decoding.sampling, decoding.draw, step, drawn)) {
        return status;
    }
    if (drawn->count == step->n) return EDGE_OK;
    const int64_t first = step->cache->length - step->n;
    int64_t kept[EDGE_MAX_TREE];
    for (int32_t i = 0; i + 1 < drawn->count; ++i) kept[i] = first + drawn->rows[i];
    return edge_cache_keep(step->cache, first + 1, kept, drawn->count - 1);
}

// The rows of the step that stay, as the draft takes them.
void gather(const edge_model &model, const edge_step &step, const edge_decoding &decoding) {
    const edge_drawn &drawn = *decoding.drawn;
    const int64_t width = model.config.hidden_size, layers = decoding.draft->hidden_layers();
    float *to = decoding.draft_hidden;
    for (int32_t i = 0; i < drawn.count; ++i) {
        const int64_t row = i == 0 ? 0 : drawn.rows[i - 1];
        for (int64_t layer = 0; layer < layers; ++layer, to += width) {
            const float *from =
                step.layer_outputs ? step.layer_outputs + layer * step.n * width : step.hidden;
            std::memcpy(to, from + row * width, size_t(width) * sizeof(float));
        }
        decoding.draft_tokens[i] = drawn.tokens[i];
    }
    decoding.draft_step->n = drawn.count;
    decoding.draft_step->tokens = decoding.draft_tokens;
    decoding.draft_step->hidden = decoding.draft_hidden;
}

void search(void *model) {
    for (const auto &[draft, step] : static_cast<edge_model *>(model)->searches) {
        if (edge_draft_run(draft, step) != EDGE_OK) step->steps_run = 0;
    }
}

}  // namespace

edge_status edge_decode(edge_model *model, edge_step *steps, const edge_decoding *decodings, int32_t count,
                        float *logits, edge_pool *pool) {
    return guarded([&]() -> edge_status {
        if (!model || !steps || !decodings || count <= 0) {
            return fail(EDGE_INVALID, "edge_decode: an argument is missing.");
        }
        if (pool && model->parallel.context != pool) {
            return fail(EDGE_INVALID, "edge_decode: the pool is not the model's.");
        }
        edge_pool_join(pool);
        for (int32_t i = 0; i < count; ++i) {
            if (steps[i].size != sizeof(edge_step)) {
                return fail(EDGE_INVALID,
                            "edge_step has another size here: the library and its caller differ in version.");
            }
            steps[i].status = EDGE_OK;
        }
        for (int32_t i = 0; i < count; ++i) {
            if (const edge_status status = check_decoding(*model, steps[i], decodings[i])) return status;
            if (decodings[i].draft) decodings[i].draft_step->steps_run = 0;
        }
        model->searches.clear();
        edge_status status = edge_forward(model, steps, count, logits);
        const auto has_failed = [](const edge_step &step) { return step.status != EDGE_OK; };
        if (status != EDGE_OK && std::none_of(steps, steps + count, has_failed)) return status;
        for (int32_t i = 0; i < count; ++i) {
            edge_step &step = steps[i];
            const edge_decoding &decoding = decodings[i];
            decoding.draw->logits = logits;
            logits += int64_t(step.n) * model->config.vocab_size;
            if (has_failed(step)) continue;
            step.status = draw(&step, decoding);
            if (has_failed(step)) {
                std::snprintf(step.error, sizeof step.error, "%s", edge_last_error());
                status = status == EDGE_OK ? edge_status(step.status) : status;
            } else if (decoding.draft) {
                gather(*model, step, decoding);
                model->searches.push_back({decoding.draft, decoding.draft_step});
            }
        }
        if (model->searches.empty()) return status;
        if (pool != nullptr) {
            edge::send(pool, search, model);
        } else {
            search(model);
        }
        return status;
    });
}
