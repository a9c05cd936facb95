// The C functions of soft prompts.
#include "decoder/soft_prompt.h"

#include <cmath>
#include <memory>

#include "abi/border.h"
#include "abi/error.h"
#include "decoder/decoder.h"

using edge::fail;
using edge::guarded;

namespace {

// So large that nothing which a network computes of smaller ones can overflow.
constexpr float largest = 1e6f;

bool all_usable(const float *values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        if (!(std::fabs(values[i]) <= largest)) return false;
    }
    return true;
}

}  // namespace

edge_status edge_soft_create(const edge_model *model, const edge_soft_config *config,
                             edge_soft_prompt **soft) {
    return guarded([&]() -> edge_status {
        if (!config || config->size != sizeof(edge_soft_config)) {
            return fail(
                EDGE_INVALID,
                "edge_soft_config has another size here: the library and its caller differ in version.");
        }
        if (!model || !soft || !config->embedding || !config->keys || !config->values) {
            return fail(EDGE_INVALID, "edge_soft_create: an argument is missing.");
        }
        if (config->embeddings < 1 || config->embeddings > EDGE_MAX_TREE || config->prefix < 1 ||
            config->prefix > edge::SoftPrefix::most_rows) {
            return fail(EDGE_INVALID, "A soft prompt has 1 to %d embeddings and 1 to %d rows, got %d and %d.",
                        EDGE_MAX_TREE, edge::SoftPrefix::most_rows, config->embeddings, config->prefix);
        }
        if (model->config.sparse.enabled) {
            return fail(EDGE_UNSUPPORTED, "Soft prompts need dense attention; open the model with it.");
        }
        const edge::CacheShape shape = model->cache_shape();
        const int64_t row = shape.layers * shape.kv_heads * shape.head_dim;
        if (!all_usable(config->embedding, int64_t(config->embeddings) * model->config.hidden_size) ||
            !all_usable(config->keys, config->prefix * row) ||
            !all_usable(config->values, config->prefix * row)) {
            return fail(EDGE_NOT_FINITE, "A number of the soft prompt is not finite, or larger than %g.",
                        double(largest));
        }
        *soft = std::make_unique<edge_soft_prompt>(shape, model->kernels, model->config.hidden_size, *config)
                    .release();
        return EDGE_OK;
    });
}

void edge_soft_destroy(edge_soft_prompt *soft) { delete soft; }
