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
    // that one lane of a vector holds, once those of 4 bits are unpacked
    const int64_t codes = has_scales(shape.type) ? 32 / std::max(8, element_bits(shape.type)) : 1;
    if (is_key) {
        const int64_t lane = index % lanes, group = (index - lane) * dim;
        return {group + codes * lane, codes, codes * lanes, dim / codes};
    }
    if (codes > 1) return {(index - index % codes) * dim + index % codes, 1, codes, dim};
    return {index * dim, dim, dim, 1};
}

template <class Element>
struct Elements {
    Element *memory;

    Element get(int64_t index) const { return memory[index]; }
    void set(int64_t index, Element value) const { memory[index] = value; }
};

template <class Element>
Elements<Element> elements(uint8_t *memory) {
    return {reinterpret_cast<Element *>(memory)};
}

// Codes of 4 bits in a block.
struct Nibbles {
    uint8_t *memory;

    uint8_t get(int64_t index) const { return memory[byte(index)] >> shift(index) & 15; }
    void set(int64_t index, uint8_t value) const {
        uint8_t *both = memory + byte(index);
        *both = uint8_t((*both & 0xF0 >> shift(index)) | value << shift(index));
    }

   private:
    static int64_t byte(int64_t index) { return index / 128 * 64 + index % 64; }
    static int shift(int64_t index) { return int(index / 64 % 2 * 4); }
};

template <class From, class To>
void copy_runs(const Runs &from, From source, const Runs &to, To target) {
    int64_t read = from.first, write = to.first;
    for (int64_t i = 0; i < to.count; ++i, read += from.stride, write += to.stride) {
        for (int64_t j = 0; j < to.run; ++j) target.set(write + j, source.get(read + j));
    }
}

void copy_elements(const CacheShape &shape, const Runs &from, uint8_t *source, const Runs &to,
                   uint8_t *target) {
    switch (shape.type) {
        case EDGE_KV_INT4:
            return copy_runs(from, Nibbles{source}, to, Nibbles{target});
        case EDGE_KV_INT8:
            return copy_runs(from, elements<uint8_t>(source), to, elements<uint8_t>(target));
        case EDGE_KV_F16:
        case EDGE_KV_INT16:
            return copy_runs(from, elements<uint16_t>(source), to, elements<uint16_t>(target));
        case EDGE_KV_F32:
            return copy_runs(from, elements<uint32_t>(source), to, elements<uint32_t>(target));
    }
}

float *scale_of(const CacheShape &shape, uint8_t *block, int64_t position) {
    return reinterpret_cast<float *>(block + attention_block * shape.row_bytes()) +
           position % attention_block;
}

}  // namespace

void copy_row(const CacheShape &shape, bool is_key, uint8_t *source, int64_t from, uint8_t *target,
              int64_t to) {
    copy_elements(shape, runs_of(shape, is_key, from), source, runs_of(shape, is_key, to), target);
    if (has_scales(shape.type)) *scale_of(shape, target, to) = *scale_of(shape, source, from);
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
        } else if (shape.type == EDGE_KV_INT4) {
            *scale_of(shape, target, position) = kernels.quantize_int4(x, shape.head_dim, row);
        } else if (shape.type == EDGE_KV_INT16) {
            const auto quantize = is_key ? kernels.quantize_key : kernels.quantize_value;
            *scale_of(shape, target, position) =
                quantize(x, shape.head_dim, reinterpret_cast<int16_t *>(row));
        } else if (shape.type == EDGE_KV_F16) {
            kernels.to_half(x, shape.head_dim, reinterpret_cast<uint16_t *>(row));
        } else {
            std::memcpy(row, x, size_t(shape.row_bytes()));
        }
        const Runs to = runs_of(shape, is_key, position), side_by_side{0, to.run, to.run, to.count};
        if (shape.type == EDGE_KV_INT4) {
            copy_runs(side_by_side, elements<uint8_t>(row), to, Nibbles{target});
        } else {
            copy_elements(shape, side_by_side, row, to, target);
        }
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
