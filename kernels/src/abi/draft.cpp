// The C functions of drafts.
#include "draft/draft.h"

#include <memory>

#include "abi/border.h"
#include "abi/checks.h"
#include "abi/error.h"

using edge::fail;
using edge::guarded;

edge_status edge_draft_create(const edge_model *target, const edge_draft_config *config,
                              const edge_weight *weights, int64_t count, edge_draft **draft) {
    return guarded([&]() -> edge_status {
        if (!config || config->size != sizeof(edge_draft_config)) {
            return fail(
                EDGE_INVALID,
                "edge_draft_config has another size here: the library and its caller differ in version.");
        }
        if (!target || !weights || count <= 0 || !draft) {
            return fail(EDGE_INVALID, "edge_draft_create: an argument is missing.");
        }
        if (const edge_status status = edge::check_draft_config(*config, target->config)) return status;
        auto loaded = std::make_unique<edge_draft>(*target, *config);
        if (const edge_status status = loaded->load(weights, count)) return status;
        *draft = loaded.release();
        return EDGE_OK;
    });
}

void edge_draft_destroy(edge_draft *draft) { delete draft; }

uint64_t edge_draft_workspace_bytes(const edge_draft *draft) { return draft ? draft->workspace_bytes() : 0; }

uint64_t edge_draft_cache_bytes(const edge_draft *draft) {
    return draft ? draft->pools.rows->used_bytes() : 0;
}

edge_status edge_draft_cache_create(const edge_draft *draft, edge_cache **cache) {
    return guarded([&]() -> edge_status {
        if (!draft || !cache) return fail(EDGE_INVALID, "edge_draft_cache_create: an argument is missing.");
        if (!draft->pools.prepare()) {
            return fail(EDGE_NO_MEMORY, "There is no address space for a draft's KV cache; lower --context.");
        }
        *cache = new edge_cache(draft->cache_shape(), {}, draft->pools);
        return EDGE_OK;
    });
}

edge_status edge_draft_run(edge_draft *draft, edge_draft_step *step) {
    return guarded([&]() -> edge_status {
        if (!step || step->size != sizeof(edge_draft_step)) {
            return fail(
                EDGE_INVALID,
                "edge_draft_step has another size here: the library and its caller differ in version.");
        }
        if (!draft || !step->cache || !step->tokens || !step->hidden) {
            return fail(EDGE_INVALID, "edge_draft_run: an argument is missing.");
        }
        if (const edge_status status = edge::refuse_in_observer("edge_draft_run")) return status;
        return draft->run(step);
    });
}
