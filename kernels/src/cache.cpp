#include "cache.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "error.h"
#include "memory.h"
#include "summaries.h"

namespace {

using edge::attention_block;
using edge::CacheShape;

constexpr int64_t lanes = 16;  // positions that stand side by side in a block of keys

// Moves between a row and its places in a block: `count` runs of `run` elements, `stride` elements apart.
template <class Element, bool to_block>
void move_runs(uint8_t *row, uint8_t *block, int64_t first, int64_t run, int64_t stride, int64_t count) {
    Element *rows = reinterpret_cast<Element *>(row), *at = reinterpret_cast<Element *>(block) + first;
    for (int64_t i = 0; i < count; ++i, at += stride, rows += run) {
        for (int64_t j = 0; j < run; ++j) (to_block ? at[j] : rows[j]) = to_block ? rows[j] : at[j];
    }
}

template <bool to_block>
void move_key(const CacheShape &shape, uint8_t *row, uint8_t *block, int64_t position) {
    const int64_t index = position % attention_block, lane = index % lanes;
    const int64_t group = (index - lane) * shape.head_dim;
    switch (shape.type) {
        case EDGE_KV_INT8:
            return move_runs<uint8_t, to_block>(row, block, group + 4 * lane, 4, 4 * lanes,
                                                shape.head_dim / 4);
        case EDGE_KV_F16:
            return move_runs<uint16_t, to_block>(row, block, group + lane, 1, lanes, shape.head_dim);
        case EDGE_KV_F32:
            return move_runs<uint32_t, to_block>(row, block, group + lane, 1, lanes, shape.head_dim);
    }
}

template <bool to_block>
void move_value(const CacheShape &shape, uint8_t *row, uint8_t *block, int64_t position) {
    const int64_t index = position % attention_block, dim = shape.head_dim;
    if (shape.type == EDGE_KV_INT8) {
        move_runs<uint8_t, to_block>(row, block, (index - index % 4) * dim + index % 4, 1, 4, dim);
    } else {
        move_runs<uint8_t, to_block>(row, block, index * shape.row_bytes(), shape.row_bytes(), 0, 1);
    }
}

float *scale_of(const CacheShape &shape, uint8_t *block, int64_t position) {
    return reinterpret_cast<float *>(block + attention_block * shape.row_bytes()) +
           position % attention_block;
}

template <void (*to_row)(const CacheShape &, uint8_t *, uint8_t *, int64_t),
          void (*to_block)(const CacheShape &, uint8_t *, uint8_t *, int64_t)>
void copy_row(const CacheShape &shape, uint8_t *source, int64_t from, uint8_t *target, int64_t to) {
    alignas(64) uint8_t row[edge::max_head_dim * sizeof(float)];
    to_row(shape, row, source, from);
    to_block(shape, row, target, to);
    if (shape.type == EDGE_KV_INT8) *scale_of(shape, target, to) = *scale_of(shape, source, from);
}

}  // namespace

void edge::copy_key(const CacheShape &shape, uint8_t *source, int64_t from, uint8_t *target, int64_t to) {
    copy_row<move_key<false>, move_key<true>>(shape, source, from, target, to);
}

void edge::copy_value(const CacheShape &shape, uint8_t *source, int64_t from, uint8_t *target, int64_t to) {
    copy_row<move_value<false>, move_value<true>>(shape, source, from, target, to);
}

edge_cache::edge_cache(const CacheShape &cache_shape, const edge_sparse &sparse) : shape(cache_shape) {
    if (sparse.enabled) summaries = std::make_unique<edge::KeySummaries>(shape, sparse);
}

edge_cache::~edge_cache() {
    if (base != nullptr) edge::unmap_memory(base, bytes);
}

void edge_cache::forget_summaries(int64_t rows) const {
    if (summaries) summaries->rows = std::min(summaries->rows, rows);
}

edge_status edge_cache::reserve() {
    bytes = size_t(shape.pages() * shape.page_bytes());
    base = static_cast<uint8_t *>(edge::map_memory(bytes, edge::Commit::when_written));
    if (base == nullptr) {
        return edge::fail(EDGE_NO_MEMORY,
                          "A KV cache of %zu MB of address space could not be reserved; lower --context.",
                          bytes >> 20);
    }
    return summaries ? summaries->reserve() : EDGE_OK;
}

void edge_cache::store(const edge::Kernels &kernels, int64_t layer, int64_t head, int64_t position,
                       const float *key, const float *value) {
    alignas(64) uint8_t row[edge::max_head_dim * sizeof(float)];
    for (const bool is_key : {true, false}) {
        const float *x = is_key ? key : value;
        uint8_t *to = is_key ? keys(layer, head, position) : values(layer, head, position);
        if (shape.type == EDGE_KV_INT8) {
            *scale_of(shape, to, position) = kernels.quantize_row(x, shape.head_dim, row);
        } else if (shape.type == EDGE_KV_F16) {
            kernels.to_half(x, shape.head_dim, reinterpret_cast<uint16_t *>(row));
        } else {
            std::memcpy(row, x, size_t(shape.row_bytes()));
        }
        is_key ? move_key<true>(shape, row, to, position) : move_value<true>(shape, row, to, position);
    }
}

void edge_cache::copy(int64_t from, int64_t to) {
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
        for (int64_t head = 0; head < shape.kv_heads; ++head) {
            edge::copy_key(shape, keys(layer, head, from), from, keys(layer, head, to), to);
            edge::copy_value(shape, values(layer, head, from), from, values(layer, head, to), to);
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
    cache->forget_summaries(length);
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
    cache->forget_summaries(length);
    return EDGE_OK;
}
