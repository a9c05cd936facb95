// The KV cache of one sequence: address space for the whole context, memory committed as rows are written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "edge.h"

namespace edge {

struct CacheShape {
    int64_t layers, kv_heads, head_dim, capacity;
    edge_kv_type type;

    int64_t element_bytes() const { return type == EDGE_KV_F16 ? 2 : 4; }
    int64_t row_bytes() const { return head_dim * element_bytes(); }
};

}  // namespace edge

// Layout: [layer][keys, values][kv_head][position][head_dim].
struct edge_cache {
    explicit edge_cache(const edge::CacheShape &cache_shape) : shape(cache_shape) {}
    ~edge_cache();
    edge_cache(const edge_cache &) = delete;

    edge_status reserve();
    uint8_t *keys(int64_t layer, int64_t head) const { return region(layer, 0, head); }
    uint8_t *values(int64_t layer, int64_t head) const { return region(layer, 1, head); }
    // Copies all layers' rows of one position to another.
    void copy(int64_t from, int64_t to);

    const edge::CacheShape shape;
    int64_t length = 0;

   private:
    uint8_t *region(int64_t layer, int64_t which, int64_t head) const {
        const int64_t index = (layer * 2 + which) * shape.kv_heads + head;
        return base + index * shape.capacity * shape.row_bytes();
    }

    uint8_t *base = nullptr;
    size_t bytes = 0;
};
