// What rows of a step that stand for tokens not known yet begin with, and what they alone see.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/soft_prefix.h"

struct edge_soft_prompt {
    edge_soft_prompt(const edge::CacheShape &cache_shape, const edge::Kernels &kernels, int64_t hidden_size,
                     const edge_soft_config &config)
        : shape(cache_shape),
          hidden(hidden_size),
          count(config.embeddings),
          embeddings(config.embedding, config.embedding + count * hidden_size),
          prefix(cache_shape, kernels, config.prefix, config.keys, config.values) {}

    bool fits(const edge::CacheShape &other, int64_t hidden_size) const {
        return shape.layers == other.layers && shape.kv_heads == other.kv_heads &&
               shape.head_dim == other.head_dim && shape.type == other.type && hidden == hidden_size;
    }

    const edge::CacheShape shape;
    const int64_t hidden, count;
    const std::vector<float> embeddings;  // [count][hidden]
    const edge::SoftPrefix prefix;
};
