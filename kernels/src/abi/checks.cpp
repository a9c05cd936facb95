// Limits of shapes, sparse attention, configurations and token trees.
#include "abi/checks.h"

#include <cmath>
#include <initializer_list>
#include <vector>

#include "abi/error.h"
#include "attention/cache.h"
#include "tiers/kernels.h"

namespace edge {

edge_status check_heads(int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t kv_type) {
    if (heads <= 0 || kv_heads <= 0 || heads % kv_heads != 0) {
        return fail(EDGE_INVALID, "heads (%d) must be a multiple of kv_heads (%d).", heads, kv_heads);
    }
    if (head_dim <= 0 || head_dim % 16 != 0 || head_dim > max_head_dim) {
        return fail(EDGE_INVALID, "head_dim is %d; it must be a multiple of 16 up to %d.", head_dim,
                    max_head_dim);
    }
    constexpr int64_t most_columns = 1 << 24;
    if (int64_t(heads) * head_dim > most_columns) {
        return fail(EDGE_INVALID, "%d heads of %d are beyond what is possible.", heads, head_dim);
    }
    if (kv_type < EDGE_KV_F16 || kv_type > EDGE_KV_INT4) {
        return fail(EDGE_INVALID, "Unknown KV type %d.", kv_type);
    }
    return EDGE_OK;
}

edge_status check_sparse(const edge_sparse &s, int64_t group) {
    struct Field {
        const char *name;
        int32_t value, least, unit;
    };
    const Field fields[] = {{"kernel_size", s.kernel_size, key_group, key_group},
                            {"kernel_stride", s.kernel_stride, key_group, key_group},
                            {"block_size", s.block_size, attention_block, attention_block},
                            {"window_size", s.window_size, s.block_size, attention_block},
                            {"topk", s.topk, 1, 1},
                            {"init_blocks", s.init_blocks, 0, 1},
                            {"dense_len", s.dense_len, -1, 1}};
    constexpr int32_t limit = 1 << 24;
    for (const Field &field : fields) {
        if (field.value < field.least || field.value > limit || field.value % field.unit != 0) {
            return fail(EDGE_INVALID, "Sparse attention: %s is %d; it must be a multiple of %d from %d on.",
                        field.name, field.value, field.unit, field.least);
        }
    }
    if (s.block_size != attention_block) {
        return fail(EDGE_INVALID, "Sparse attention: block_size is %d; only %d is built.", s.block_size,
                    attention_block);
    }
    if (s.kernel_size % s.kernel_stride != 0 || s.block_size % s.kernel_stride != 0 ||
        s.init_blocks > s.topk) {
        return fail(EDGE_INVALID,
                    "Sparse attention: kernel_size and block_size must be multiples of kernel_stride, and "
                    "init_blocks at most topk.");
    }
    constexpr int64_t most_group = 64;
    if (group > most_group) {
        return fail(EDGE_INVALID, "Sparse attention takes up to %d query heads per KV head, not %lld.",
                    int(most_group), (long long)group);
    }
    return EDGE_OK;
}

edge_status check_activations(int32_t activations) {
    if (activations >= EDGE_ACTIVATIONS_INT8 && activations <= EDGE_ACTIVATIONS_INT16) return EDGE_OK;
    return fail(EDGE_INVALID, "Unknown kind of activations %d.", activations);
}

namespace {

constexpr int64_t largest_size = 1 << 24;

struct Size {
    const char *name;
    int64_t value;
};

edge_status check_sizes(std::initializer_list<Size> sizes) {
    for (const Size &size : sizes) {
        if (size.value <= 0 || size.value > largest_size) {
            return fail(EDGE_INVALID, "%s is %lld; it must be between 1 and %lld.", size.name,
                        (long long)size.value, (long long)largest_size);
        }
    }
    return EDGE_OK;
}

edge_status check_cache_size(const CacheShape &cache) {
    constexpr int64_t most_layers = 4096;
    if (cache.layers > most_layers) {
        return fail(EDGE_INVALID, "%lld layers are beyond what is possible.", (long long)cache.layers);
    }
    constexpr int64_t most_cache_bytes = int64_t(1) << 46;
    if (cache.position_bytes() > most_cache_bytes / cache.pages() / attention_chunk) {
        return fail(EDGE_INVALID,
                    "A KV cache of %lld tokens with %lld bytes each is beyond what is possible.",
                    (long long)cache.capacity, (long long)cache.position_bytes());
    }
    return EDGE_OK;
}

edge_status check_frequencies(const float *frequencies, int32_t head_dim) {
    for (int32_t i = 0; i < head_dim / 2; ++i) {
        if (!std::isfinite(frequencies[i])) return fail(EDGE_INVALID, "A rotary frequency is not finite.");
    }
    return EDGE_OK;
}

edge_status check_scales(std::initializer_list<float> scales, float eps) {
    for (const float value : scales) {
        if (!std::isfinite(value)) {
            return fail(EDGE_INVALID, "A scale or epsilon of the model is not finite.");
        }
    }
    if (!(eps > 0.0f) || !std::isfinite(eps)) {
        return fail(EDGE_INVALID, "rms_norm_eps must be positive and finite, got %g.", double(eps));
    }
    return EDGE_OK;
}

}  // namespace

edge_status check_config(const edge_config &c) {
    if (const edge_status status = check_sizes({{"vocab_size", c.vocab_size},
                                                {"hidden_size", c.hidden_size},
                                                {"intermediate_size", c.intermediate_size},
                                                {"layers", c.layers},
                                                {"heads", c.heads},
                                                {"kv_heads", c.kv_heads},
                                                {"head_dim", c.head_dim},
                                                {"context", c.context},
                                                {"max_batch", c.max_batch}})) {
        return status;
    }
    if (const edge_status status = check_heads(c.heads, c.kv_heads, c.head_dim, c.kv_type)) return status;
    const CacheShape cache{c.layers, c.kv_heads, c.head_dim, c.context, edge_kv_type(c.kv_type)};
    if (const edge_status status = check_cache_size(cache)) return status;
    if (const edge_status status = check_activations(c.activations)) return status;
    if (c.inverse_frequency == nullptr) return fail(EDGE_INVALID, "inverse_frequency is NULL.");
    if (const edge_status status = check_frequencies(c.inverse_frequency, c.head_dim)) return status;
    if (const edge_status status = check_scales(
            {c.embedding_scale, c.residual_scale, c.logit_scale, c.rope_scale}, c.rms_norm_eps)) {
        return status;
    }
    return c.sparse.enabled ? check_sparse(c.sparse, c.heads / c.kv_heads) : EDGE_OK;
}

namespace {

edge_status check_block(const edge_draft_config &c, const edge_config &target) {
    if (c.block_size == 0) {
        if (c.markov_rank == 0 && c.confidence == 0) return EDGE_OK;
        return fail(EDGE_INVALID, "Only a draft with a block_size has a Markov head or a confidence head.");
    }
    const int32_t least = c.anchor_tells != 0 ? 1 : 2;
    if (c.block_size < least || c.block_size > EDGE_MAX_TREE) {
        return fail(EDGE_INVALID, "block_size is %d; a block has %d to %d rows.", c.block_size, least,
                    EDGE_MAX_TREE);
    }
    if (c.taps < 1) {
        return fail(EDGE_INVALID, "A block draft has 1 to %d taps, not %d.", target.layers, c.taps);
    }
    if (c.mask_token < 0 || c.mask_token >= target.vocab_size) {
        return fail(EDGE_INVALID, "mask_token is %d, outside the vocabulary of %d.", c.mask_token,
                    target.vocab_size);
    }
    if (c.markov_rank < 0 || c.markov_rank > 4096) {
        return fail(EDGE_INVALID, "markov_rank is %d; it must be 0 to 4096.", c.markov_rank);
    }
    return EDGE_OK;
}

}  // namespace

edge_status check_draft_config(const edge_draft_config &c, const edge_config &target) {
    if (const edge_status status = check_sizes({{"intermediate_size", c.intermediate_size},
                                                {"layers", c.layers},
                                                {"heads", c.heads},
                                                {"kv_heads", c.kv_heads},
                                                {"head_dim", c.head_dim}})) {
        return status;
    }
    if (const edge_status status = check_heads(c.heads, c.kv_heads, c.head_dim, c.kv_type)) return status;
    const CacheShape cache{c.layers, c.kv_heads, c.head_dim, target.context, edge_kv_type(c.kv_type)};
    if (const edge_status status = check_cache_size(cache)) return status;
    if (c.window < 0) return fail(EDGE_INVALID, "window is %d; it must be 0 or positive.", c.window);
    if (const edge_status status = check_block(c, target)) return status;
    if (c.taps < 0 || c.taps > target.layers || (c.taps > 0 && c.layers != 1 && c.block_size == 0)) {
        return fail(EDGE_INVALID,
                    "A draft of %d layers can't have %d taps: those of one layer have up to %d.", c.layers,
                    c.taps, target.layers);
    }
    if (c.inverse_frequency != nullptr) {
        if (const edge_status status = check_frequencies(c.inverse_frequency, c.head_dim)) return status;
    }
    if (const edge_status status =
            check_scales({c.residual_scale, c.rope_scale, c.logit_scale}, c.rms_norm_eps)) {
        return status;
    }
    if (c.head_rows < 0 || c.head_rows > target.vocab_size ||
        (c.head_rows > 0) != (c.head_tokens != nullptr)) {
        return fail(EDGE_INVALID, "A draft's own head has 1 to %d rows, and a token for each.",
                    target.vocab_size);
    }
    std::vector<bool> seen(c.head_rows > 0 ? size_t(target.vocab_size) : 0);
    for (int32_t row = 0; row < c.head_rows; ++row) {
        const int32_t token = c.head_tokens[row];
        if (token < 0 || token >= target.vocab_size || seen[size_t(token)]) {
            return fail(
                EDGE_INVALID,
                "The rows of a draft's head are different tokens of the vocabulary of %d; row %d has %d.",
                target.vocab_size, row, token);
        }
        seen[size_t(token)] = true;
    }
    return EDGE_OK;
}

edge_status check_tree(const uint64_t *tree, int64_t n) {
    if (n > EDGE_MAX_TREE) {
        return fail(EDGE_INVALID, "A tree has at most %d tokens, got %lld.", EDGE_MAX_TREE, (long long)n);
    }
    for (int64_t i = 0; i < n; ++i) {
        if (tree[i] >> i != 1) {
            return fail(EDGE_INVALID, "Token %lld of the tree must see itself and nothing after it.",
                        (long long)i);
        }
    }
    return EDGE_OK;
}

}  // namespace edge
