// Where the elements of a row stand in its block, and the C functions of a cache.
#include "attention/cache.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "abi/error.h"
#include "attention/summaries.h"
#include "memory/memory.h"

namespace edge {
namespace {

constexpr int64_t lanes = 16;  // positions that stand side by side in a block of keys

// Where a row's elements stand: `count` runs of `run` elements, the runs `stride` elements apart.
struct Runs {
    int64_t first, run, stride, count;
};

Runs runs_of(const CacheShape &shape, bool is_key, int64_t position) {
    const int64_t index = position % attention_block, dim = shape.head_dim;
    const int64_t codes =
        shape.has_scales() ? 4 / shape.element_bytes() : 1;  // that one lane of a vector holds
    if (is_key) {
        const int64_t lane = index % lanes, group = (index - lane) * dim;
        return {group + codes * lane, codes, codes * lanes, dim / codes};
    }
    if (codes > 1) return {(index - index % codes) * dim + index % codes, 1, codes, dim};
    return {index * dim, dim, dim, 1};
}

template <class Element>
void copy_runs(const Runs &from, const uint8_t *source, const Runs &to, uint8_t *target) {
    const Element *read = reinterpret_cast<const Element *>(source) + from.first;
    Element *write = reinterpret_cast<Element *>(target) + to.first;
    for (int64_t i = 0; i < to.count; ++i, read += from.stride, write += to.stride) {
        for (int64_t j = 0; j < to.run; ++j) write[j] = read[j];
    }
}

void copy_runs(const CacheShape &shape, const Runs &from, const uint8_t *source, const Runs &to,
               uint8_t *target) {
    switch (shape.type) {
        case EDGE_KV_INT8:
            return copy_runs<uint8_t>(from, source, to, target);
        case EDGE_KV_F16:
        case EDGE_KV_INT16:
            return copy_runs<uint16_t>(from, source, to, target);
        case EDGE_KV_F32:
            return copy_runs<uint32_t>(from, source, to, target);
    }
}

float *scale_of(const CacheShape &shape, uint8_t *block, int64_t position) {
    return reinterpret_cast<float *>(block + attention_block * shape.row_bytes()) +
           position % attention_block;
}

}  // namespace

void copy_row(const CacheShape &shape, bool is_key, uint8_t *source, int64_t from, uint8_t *target,
              int64_t to) {
    copy_runs(shape, runs_of(shape, is_key, from), source, runs_of(shape, is_key, to), target);
    if (shape.has_scales()) *scale_of(shape, target, to) = *scale_of(shape, source, from);
}

void CacheView::store(const Kernels &kernels, int64_t layer, int64_t head, int64_t position, const float *key,
                      const float *value) const {
    alignas(64) uint8_t row[max_head_dim * sizeof(float)];
    for (const bool is_key : {true, false}) {
        const float *x = is_key ? key : value;
        uint8_t *target = block(layer, head, position, is_key);
        if (shape.type == EDGE_KV_INT8) {
            *scale_of(shape, target, position) =
                kernels.quantize_int8(x, shape.head_dim, reinterpret_cast<int8_t *>(row));
        } else if (shape.type == EDGE_KV_INT16) {
            const auto quantize = is_key ? kernels.quantize_key : kernels.quantize_value;
            *scale_of(shape, target, position) =
                quantize(x, shape.head_dim, reinterpret_cast<int16_t *>(row));
        } else if (shape.type == EDGE_KV_F16) {
            kernels.to_half(x, shape.head_dim, reinterpret_cast<uint16_t *>(row));
        } else {
            std::memcpy(row, x, size_t(shape.row_bytes()));
        }
        const Runs to = runs_of(shape, is_key, position);
        copy_runs(shape, {0, to.run, to.run, to.count}, row, to, target);
    }
}

void CacheView::copy(int64_t from, int64_t to) const {
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
        for (int64_t head = 0; head < shape.kv_heads; ++head) {
            for (const bool is_key : {true, false}) {
                copy_row(shape, is_key, block(layer, head, from, is_key), from,
                         block(layer, head, to, is_key), to);
            }
        }
    }
}

}  // namespace edge

edge_cache::edge_cache(const edge::CacheShape &cache_shape, const edge_sparse &sparse)
    : edge::CacheView{cache_shape} {
    if (sparse.enabled) own_summaries_ = std::make_unique<edge::KeySummaries>(shape, sparse);
    summaries = own_summaries_.get();
}

edge_cache::~edge_cache() {
    if (memory != nullptr) edge::unmap_memory(memory, shape.bytes_of(shape.capacity));
    if (summaries && summaries->memory) edge::unmap_memory(summaries->memory, summaries->shape.bytes());
}

void edge_cache::forget_summaries(int64_t rows) const {
    if (summaries) summaries->rows = std::min(summaries->rows, rows);
}

edge_status edge_cache::reserve() {
    const auto map = [](uint64_t bytes, const char *what, uint8_t **where) -> edge_status {
        *where = static_cast<uint8_t *>(edge::map_memory(bytes, edge::Commit::when_written));
        if (*where != nullptr) return EDGE_OK;
        return edge::fail(EDGE_NO_MEMORY,
                          "%llu MB of address space for %s could not be reserved; lower --context.",
                          (unsigned long long)(bytes / 1000000), what);
    };
    if (const edge_status status = map(shape.bytes_of(shape.capacity), "the KV cache", &memory)) {
        return status;
    }
    return summaries ? map(summaries->shape.bytes(), "key summaries", &summaries->memory) : EDGE_OK;
}

int64_t edge_cache_length(const edge_cache *cache) { return cache ? cache->length : 0; }

void edge_cache_destroy(edge_cache *cache) { delete cache; }

edge_status edge_cache_truncate(edge_cache *cache, int64_t length) {
    if (const edge_status status = edge::refuse_in_observer("edge_cache_truncate")) return status;
    if (cache == nullptr || length < 0 || length > cache->length) {
        return edge::fail(EDGE_INVALID, "Cannot truncate a cache of %lld rows to %lld.",
                          (long long)edge_cache_length(cache), (long long)length);
    }
    cache->length = length;
    cache->forget_summaries(length);
    return EDGE_OK;
}

edge_status edge_cache_keep(edge_cache *cache, int64_t length, const int64_t *rows, int64_t count) {
    if (const edge_status status = edge::refuse_in_observer("edge_cache_keep")) return status;
    if (cache == nullptr || length < 0 || length > cache->length || count < 0 ||
        (count > 0 && rows == nullptr)) {
        return edge::fail(EDGE_INVALID, "edge_cache_keep: the cache, the length or the rows are wrong.");
    }
    int64_t previous = length - 1;
    for (int64_t i = 0; i < count; ++i) {
        if (rows[i] <= previous || rows[i] >= cache->length) {
            return edge::fail(EDGE_INVALID,
                              "Rows to keep must ascend from %lld to below %lld; row %lld is %lld.",
                              (long long)length, (long long)cache->length, (long long)i, (long long)rows[i]);
        }
        previous = rows[i];
    }
    for (int64_t i = 0; i < count; ++i) {
        if (rows[i] != length + i) cache->copy(rows[i], length + i);
    }
    cache->length = length + count;
    cache->forget_summaries(length);
    return EDGE_OK;
}

edge_status edge_cache_repeat(edge_cache *cache, int64_t length) {
    if (const edge_status status = edge::refuse_in_observer("edge_cache_repeat")) return status;
    if (cache == nullptr || cache->length == 0 || length < cache->length || length > cache->shape.capacity) {
        return edge::fail(EDGE_INVALID, "A cache of %lld rows can't be repeated up to %lld rows.",
                          (long long)edge_cache_length(cache), (long long)length);
    }
    for (int64_t row = cache->length; row < length; ++row) cache->copy(row - cache->length, row);
    cache->forget_summaries(cache->length);
    cache->length = length;
    return EDGE_OK;
}

edge_status edge_cache_memory(const edge_cache *cache, const void **memory, uint64_t *bytes) {
    if (const edge_status status = edge::refuse_in_observer("edge_cache_memory")) return status;
    if (cache == nullptr || memory == nullptr || bytes == nullptr) {
        return edge::fail(EDGE_INVALID, "edge_cache_memory: an argument is NULL.");
    }
    *memory = cache->memory;
    *bytes = cache->shape.bytes_of(cache->length);
    return EDGE_OK;
}

edge_status edge_cache_restore(edge_cache *cache, int64_t length, const void *memory, uint64_t bytes) {
    if (const edge_status status = edge::refuse_in_observer("edge_cache_restore")) return status;
    if (cache == nullptr || memory == nullptr || length < 0 || length > cache->shape.capacity) {
        return edge::fail(EDGE_INVALID, "A cache of %lld rows can't be restored to %lld rows.",
                          cache ? (long long)cache->shape.capacity : 0LL, (long long)length);
    }
    if (bytes != cache->shape.bytes_of(length)) {
        return edge::fail(EDGE_INVALID, "%lld rows of this cache take %llu bytes, not %llu.",
                          (long long)length, (unsigned long long)cache->shape.bytes_of(length),
                          (unsigned long long)bytes);
    }
    std::memcpy(cache->memory, memory, bytes);
    cache->length = length;
    cache->forget_summaries(0);
    return EDGE_OK;
}
