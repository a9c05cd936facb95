#include "cache.h"

#include <sys/mman.h>

#include <cstring>
#include <initializer_list>

#include "error.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

edge_cache::~edge_cache() {
    if (base != nullptr) munmap(base, bytes);
}

edge_status edge_cache::reserve() {
    bytes = size_t(shape.layers * 2 * shape.kv_heads * shape.capacity * shape.row_bytes());
    void *memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return edge::fail(EDGE_NO_MEMORY,
                          "A KV cache of %zu MB of address space could not be reserved; lower --context.",
                          bytes >> 20);
    }
    base = static_cast<uint8_t *>(memory);
    return EDGE_OK;
}

void edge_cache::copy(int64_t from, int64_t to) {
    const size_t row_bytes = size_t(shape.row_bytes());
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
        for (int64_t head = 0; head < shape.kv_heads; ++head) {
            for (uint8_t *region : {keys(layer, head), values(layer, head)}) {
                std::memcpy(region + size_t(to) * row_bytes, region + size_t(from) * row_bytes, row_bytes);
            }
        }
    }
}

int32_t edge_cache_length(const edge_cache *cache) { return cache ? int32_t(cache->length) : 0; }

void edge_cache_destroy(edge_cache *cache) { delete cache; }

edge_status edge_cache_truncate(edge_cache *cache, int32_t length) {
    if (cache == nullptr || length < 0 || length > cache->length) {
        return edge::fail(EDGE_INVALID, "Cannot truncate a cache of %d rows to %d.", edge_cache_length(cache),
                          length);
    }
    cache->length = length;
    return EDGE_OK;
}

edge_status edge_cache_keep(edge_cache *cache, int32_t length, const int32_t *rows, int32_t count) {
    if (cache == nullptr || length < 0 || length > cache->length || count < 0 ||
        (count > 0 && rows == nullptr)) {
        return edge::fail(EDGE_INVALID, "edge_cache_keep: the cache, the length or the rows are wrong.");
    }
    int64_t previous = int64_t(length) - 1;
    for (int32_t i = 0; i < count; ++i) {
        if (rows[i] <= previous || rows[i] >= cache->length) {
            return edge::fail(EDGE_INVALID, "Rows to keep must ascend from %d to below %d; row %d is %d.",
                              length, int(cache->length), i, rows[i]);
        }
        previous = rows[i];
    }
    for (int32_t i = 0; i < count; ++i) {
        if (rows[i] != length + i) cache->copy(rows[i], length + i);
    }
    cache->length = length + count;
    return EDGE_OK;
}

edge_status edge_cache_repeat(edge_cache *cache, int32_t length) {
    if (cache == nullptr || cache->length == 0 || length < cache->length || length > cache->shape.capacity) {
        return edge::fail(EDGE_INVALID, "A cache of %d rows can't be repeated up to %d rows.",
                          edge_cache_length(cache), length);
    }
    for (int64_t row = cache->length; row < length; ++row) cache->copy(row - cache->length, row);
    cache->length = length;
    return EDGE_OK;
}
