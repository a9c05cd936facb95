// What configurations, activations and token trees must fulfil, each with one sentence for what does not.
#pragma once

#include <cstdint>

#include "edge.h"

namespace edge {

edge_status check_heads(int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t kv_type);
edge_status check_sparse(const edge_sparse &sparse, int64_t group);
edge_status check_activations(int32_t activations);
edge_status check_config(const edge_config &config);
edge_status check_draft_config(const edge_draft_config &config, const edge_config &target);
edge_status check_tree(const uint64_t *tree, int64_t n);

}  // namespace edge
