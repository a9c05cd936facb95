// The operators of a layer that work on its KV cache, for host runtimes.
#include <algorithm>
#include <cstring>
#include <optional>

#include "abi/border.h"
#include "abi/checks.h"
#include "attention/attention.h"
#include "attention/sparse_attention.h"
#include "attention/summaries.h"
#include "decoder/layer.h"
#include "memory/aligned.h"

using edge::fail;
using edge::guarded;
using edge::Kernels;

namespace {

edge::CacheShape shape_of(const edge_layer_cache &cache, int64_t rows) {
    return {1, cache.kv_heads, cache.head_dim, rows, edge_kv_type(cache.kv_type)};
}

edge_status check_shape(const edge_layer_cache &cache, uint64_t *bytes) {
    if (const edge_status status =
            edge::check_heads(cache.heads, cache.kv_heads, cache.head_dim, cache.kv_type)) {
        return status;
    }
    if (cache.sparse.enabled) {
        if (const edge_status status = edge::check_sparse(cache.sparse, cache.heads / cache.kv_heads)) {
            return status;
        }
    }
    if (cache.capacity <= 0 || cache.capacity > edge::most_tokens) {
        return fail(EDGE_INVALID, "A cache of %lld tokens is out of range.", (long long)cache.capacity);
    }
    const edge::CacheShape shape = shape_of(cache, cache.capacity);
    *bytes = shape.bytes_of(cache.capacity);
    if (cache.sparse.enabled) *bytes += edge::SummaryShape(shape, cache.sparse).bytes();
    return EDGE_OK;
}

// A checked cache whose first `start` rows have their summaries.
struct Layer {
    Layer(const edge_layer_cache &cache, int64_t start)
        : summaries(shape_of(cache, cache.capacity), cache.sparse),
          view{shape_of(cache, cache.capacity), static_cast<uint8_t *>(cache.memory)} {
        if (!cache.sparse.enabled) return;
        summaries.memory = view.memory + view.shape.bytes_of(cache.capacity);
        summaries.rows = start;
        view.summaries = &summaries;
    }
    Layer(const Layer &) = delete;

    // Makes the summaries those of `rows` rows.
    void summarise(const edge_parallel &parallel, const Kernels &kernels, int64_t rows) const {
        if (view.summaries) summaries.update(parallel, kernels, view, 0, rows);
    }

    edge::KeySummaries summaries;
    edge::CacheView view;
};

edge_status check_cache(const edge_layer_cache *cache, int64_t n, int64_t start, const uint64_t *tree) {
    if (cache == nullptr) return fail(EDGE_INVALID, "The cache is missing.");
    uint64_t bytes = 0;
    if (const edge_status status = check_shape(*cache, &bytes)) return status;
    if (cache->memory == nullptr || cache->bytes != bytes) {
        return fail(EDGE_INVALID, "A cache of this shape takes %llu bytes, got %llu.",
                    (unsigned long long)bytes, (unsigned long long)(cache->memory ? cache->bytes : 0));
    }
    if (reinterpret_cast<uintptr_t>(cache->memory) % sizeof(float) != 0) {
        return fail(EDGE_INVALID, "The cache must start at a multiple of 4 bytes.");
    }
    if (start < 0 || start > cache->capacity || n > cache->capacity - start) {
        return fail(EDGE_CONTEXT, "%lld more tokens after %lld do not fit a cache of %lld tokens.",
                    (long long)n, (long long)start, (long long)cache->capacity);
    }
    return tree ? edge::check_tree(tree, n) : EDGE_OK;
}

}  // namespace

edge_status edge_layer_cache_bytes(const edge_layer_cache *cache, uint64_t *bytes) {
    if (!cache || !bytes) return fail(EDGE_INVALID, "edge_layer_cache_bytes: an argument is missing.");
    return check_shape(*cache, bytes);
}

edge_status edge_kv_append(const edge_host *host, const edge_layer_cache *cache, const float *qkv,
                           const float *rope, int64_t n, int64_t start, const uint64_t *tree,
                           float *queries) {
    return guarded([&]() -> edge_status {
        const Kernels *kernels;
        if (const edge_status status = edge::check_host(host, n, "edge_kv_append", &kernels)) return status;
        if (const edge_status status = check_cache(cache, n, start, tree)) return status;
        if (!qkv || !rope || !queries) return fail(EDGE_INVALID, "edge_kv_append: an argument is missing.");
        const int64_t dim = cache->head_dim, query = cache->heads * dim, kv = cache->kv_heads * dim;
        float *rotated;  // keys, of one token per thread
        uint64_t bytes = 0;
        edge::place(nullptr, &bytes, host->parallel->workers * kv, &rotated);
        uint8_t *memory;
        if (const edge_status status = edge::take_scratch(host->scratch, bytes, &memory)) return status;
        rotated = reinterpret_cast<float *>(memory);
        const Layer layer(*cache, start);
        edge::append_tokens(*host->parallel, start, n, [&](int64_t token, int32_t worker) {
            float *keys = rotated + worker * kv;
            const float *row = qkv + token * (query + 2 * kv);
            std::memcpy(queries + token * query, row, size_t(query) * sizeof(float));
            std::memcpy(keys, row + query, size_t(kv) * sizeof(float));
            edge::append_token(*kernels, layer.view, 0, start + token, rope + token * dim, cache->heads,
                               queries + token * query, keys, row + query + kv);
        });
        if (tree == nullptr) layer.summarise(*host->parallel, *kernels, start + n);
        return EDGE_OK;
    });
}

edge_status edge_paged_attention(const edge_host *host, const edge_layer_cache *cache, const float *queries,
                                 int64_t n, int64_t start, const uint64_t *tree, float *out) {
    return guarded([&]() -> edge_status {
        const char *const what = "edge_paged_attention";
        const Kernels *kernels;
        if (const edge_status status = edge::check_host(host, n, what, &kernels)) return status;
        if (const edge_status status = check_cache(cache, n, start, tree)) return status;
        if (!queries || !out) return fail(EDGE_INVALID, "%s: an argument is missing.", what);
        const edge_parallel &parallel = *host->parallel;
        const int64_t rows = start + n, stride = int64_t(cache->heads) * cache->head_dim;
        const edge::CacheShape used = shape_of(*cache, rows);
        const Layer layer(*cache, tree ? start : rows);
        edge::Attention dense(used, cache->heads, n, parallel.workers);
        std::optional<edge::SparseAttention> sparse;
        if (cache->sparse.enabled && rows > cache->sparse.dense_len) {
            sparse.emplace(used, cache->sparse, cache->heads, n, parallel.workers);
        }
        uint8_t *memory;
        const uint64_t bytes = dense.bytes() + (sparse ? sparse->bytes() : 0);
        if (const edge_status status = edge::take_scratch(host->scratch, bytes, &memory)) return status;
        dense.place(memory);
        const edge::Sequence sequence{&layer.view, 0, n, start, tree};
        if (!sparse) {
            dense.run(parallel, *kernels, 0, queries, out, stride, &sequence, 1);
            return EDGE_OK;
        }
        sparse->place(memory + dense.bytes());
        sparse->run(parallel, *kernels, dense, 0, queries, out, stride, &sequence, 1);
        return EDGE_OK;
    });
}

edge_status edge_kv_keep(const edge_host *host, const edge_layer_cache *cache, const int64_t *rows,
                         int64_t count, int64_t start) {
    return guarded([&]() -> edge_status {
        const Kernels *kernels;
        if (count < 0) {
            return fail(EDGE_INVALID, "edge_kv_keep: %lld rows are out of range.", (long long)count);
        }
        const int64_t least = std::max<int64_t>(count, 1);
        if (const edge_status status = edge::check_host(host, least, "edge_kv_keep", &kernels)) return status;
        if (const edge_status status = check_cache(cache, count, start, nullptr)) return status;
        if (count == 0) return EDGE_OK;
        if (rows == nullptr) return fail(EDGE_INVALID, "edge_kv_keep: an argument is missing.");
        int64_t previous = start - 1;
        for (int64_t i = 0; i < count; previous = rows[i++]) {
            if (rows[i] > previous && rows[i] < cache->capacity) continue;
            return fail(EDGE_INVALID, "Rows to keep must ascend from %lld to below %lld; row %lld is %lld.",
                        (long long)start, (long long)cache->capacity, (long long)i, (long long)rows[i]);
        }
        const Layer layer(*cache, start);
        for (int64_t i = 0; i < count; ++i) {
            if (rows[i] != start + i) layer.view.copy(rows[i], start + i);
        }
        layer.summarise(*host->parallel, *kernels, start + count);
        return EDGE_OK;
    });
}
