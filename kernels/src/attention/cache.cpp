// Where the elements of a row stand in its block, and the C functions of a cache.
#include "attention/cache.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <system_error>
#include <thread>

#include "abi/border.h"
#include "abi/error.h"
#include "attention/summaries.h"
#include "memory/memory.h"

namespace edge {
namespace {

constexpr int64_t lanes = 16;  // positions that stand side by side in a block of keys

constexpr int64_t worth_a_thread = 16 << 20;  // bytes

// work(first, last) over `count` items, with a second thread if they have many bytes: memory that nobody has touched
// before takes longer to get than to fill.
template <typename Work>
void in_two(int64_t count, int64_t bytes, const Work &work) {
    const int64_t half = bytes < worth_a_thread ? count : count / 2;
    std::thread other;
    try {
        if (half < count) other = std::thread(work, half, count);
    } catch (const std::system_error &) { work(half, count); }
    work(0, half);
    if (other.joinable()) other.join();
}

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

edge::CachePools::CachePools(const CacheShape &shape, const edge_sparse &sparse) {
    // Room for a whole context, so that a lone sequence lies in one piece.
    constexpr uint64_t least = 32 << 20;
    rows = std::make_shared<PagePool>(uint64_t(shape.page_bytes()),
                                      std::max(least, shape.bytes_of(shape.capacity)));
    if (!sparse.enabled) return;
    const SummaryShape summary(shape, sparse);
    summaries = std::make_shared<PagePool>(uint64_t(summary.page_bytes()), std::max(least, summary.bytes()));
}

bool edge::CachePools::prepare() const {
    return rows->prepare() && (summaries == nullptr || summaries->prepare());
}

edge_cache::edge_cache(const edge::CacheShape &cache_shape, const edge_sparse &sparse,
                       const edge::CachePools &pools)
    : edge::CacheView{cache_shape}, row_pages_(pools.rows, cache_shape.pages()) {
    pages = row_pages_.pages();
    if (!sparse.enabled) return;
    own_summaries_ = std::make_unique<edge::KeySummaries>(shape, sparse);
    summaries = own_summaries_.get();
    summary_pages_ = std::make_unique<edge::PageTable>(pools.summaries, summaries->shape.pages());
    summaries->pages = summary_pages_->pages();
}

edge_cache::edge_cache(const edge::CacheShape &cache_shape, const edge_sparse &sparse)
    : edge_cache(cache_shape, sparse, edge::CachePools(cache_shape, sparse)) {}

edge_cache::~edge_cache() = default;

edge_status edge_cache::make_room(int64_t first, int64_t rows) {
    const auto make = [](edge::PageTable &table, int64_t count, int64_t first_written) {
        return table.resize(std::max(count, table.count())) && table.own(first_written);
    };
    bool made = make(row_pages_, shape.pages_of(rows), first / edge::attention_chunk);
    if (made && summaries) {
        // Windows that were complete before are not written again.
        const edge::SummaryShape &grids = summaries->shape;
        const int64_t least = std::min(grids.fine.complete(summaries->rows) / edge::SummaryShape::coarsening,
                                       grids.coarse.complete(summaries->rows));
        made = make(*summary_pages_, grids.pages_of(rows), least / edge::attention_block);
    }
    if (made) return EDGE_OK;
    cut(length);
    return edge::fail(EDGE_NO_MEMORY, "There is no address space for %lld more rows of a KV cache.",
                      (long long)(rows - first));
}

void edge_cache::cut(int64_t rows) {
    length = rows;
    row_pages_.resize(std::min(row_pages_.count(), shape.pages_of(rows)));
    if (!summaries) return;
    summaries->rows = std::min(summaries->rows, rows);
    summary_pages_->resize(std::min(summary_pages_->count(), summaries->shape.pages_of(rows)));
}

void edge_cache::share(const edge_cache &other, int64_t rows) {
    row_pages_.share(other.row_pages_, shape.pages_of(rows));
    length = rows;
    if (!summaries) return;
    summary_pages_->share(*other.summary_pages_,
                          std::min(other.summary_pages_->count(), summaries->shape.pages_of(rows)));
    summaries->rows = std::min(other.summaries->rows, rows);
}

int64_t edge_cache_length(const edge_cache *cache) { return cache ? cache->length.load() : 0; }

void edge_cache_destroy(edge_cache *cache) { delete cache; }

edge_status edge_cache_truncate(edge_cache *cache, int64_t length) {
    if (const edge_status status = edge::refuse_in_observer("edge_cache_truncate")) return status;
    if (cache == nullptr || length < 0 || length > cache->length) {
        return edge::fail(EDGE_INVALID, "Cannot truncate a cache of %lld rows to %lld.",
                          (long long)edge_cache_length(cache), (long long)length);
    }
    cache->cut(length);
    return EDGE_OK;
}

edge_status edge_cache_fork(const edge_cache *cache, int64_t length, edge_cache *into) {
    if (const edge_status status = edge::refuse_in_observer("edge_cache_fork")) return status;
    if (cache == nullptr || into == nullptr || cache == into || length < 0 || length > cache->length) {
        return edge::fail(EDGE_INVALID, "The first %lld of %lld rows of a cache can't become another's.",
                          (long long)length, (long long)edge_cache_length(cache));
    }
    if (!into->is_akin(*cache)) {
        return edge::fail(EDGE_INVALID, "The two caches belong to different models.");
    }
    into->share(*cache, length);
    return EDGE_OK;
}

edge_status edge_cache_keep(edge_cache *cache, int64_t length, const int64_t *rows, int64_t count) {
    return edge::guarded([&]() -> edge_status {
        if (const edge_status status = edge::refuse_in_observer("edge_cache_keep")) return status;
        if (cache == nullptr || length < 0 || length > cache->length || count < 0 ||
            (count > 0 && rows == nullptr)) {
            return edge::fail(EDGE_INVALID, "edge_cache_keep: the cache, the length or the rows are wrong.");
        }
        int64_t previous = length - 1;
        for (int64_t i = 0; i < count; ++i) {
            if (rows[i] <= previous || rows[i] >= cache->length) {
                return edge::fail(
                    EDGE_INVALID, "Rows to keep must ascend from %lld to below %lld; row %lld is %lld.",
                    (long long)length, (long long)cache->length, (long long)i, (long long)rows[i]);
            }
            previous = rows[i];
        }
        if (const edge_status status = cache->make_room(length, cache->length)) return status;
        for (int64_t i = 0; i < count; ++i) {
            if (rows[i] != length + i) cache->copy(rows[i], length + i);
        }
        if (cache->summaries) cache->summaries->rows = std::min(cache->summaries->rows, length);
        cache->cut(length + count);
        return EDGE_OK;
    });
}

edge_status edge_cache_repeat(edge_cache *cache, int64_t length) {
    return edge::guarded([&]() -> edge_status {
        if (const edge_status status = edge::refuse_in_observer("edge_cache_repeat")) return status;
        if (cache == nullptr || cache->length == 0 || length < cache->length ||
            length > cache->shape.capacity) {
            return edge::fail(EDGE_INVALID, "A cache of %lld rows can't be repeated up to %lld rows.",
                              (long long)edge_cache_length(cache), (long long)length);
        }
        if (const edge_status status = cache->make_room(cache->length, length)) return status;
        for (int64_t row = cache->length; row < length; ++row) cache->copy(row - cache->length, row);
        cache->length = length;
        return EDGE_OK;
    });
}

edge_status edge_cache_page(const edge_cache *cache, int64_t page, const void **memory, uint64_t *bytes) {
    if (const edge_status status = edge::refuse_in_observer("edge_cache_page")) return status;
    if (cache == nullptr || memory == nullptr || bytes == nullptr || page < 0 ||
        page >= cache->shape.pages_of(cache->length)) {
        return edge::fail(EDGE_INVALID, "edge_cache_page: page %lld of %lld, or an argument is NULL.",
                          (long long)page, cache ? (long long)cache->shape.pages_of(cache->length) : 0LL);
    }
    *memory = cache->pages[page];
    *bytes = uint64_t(cache->shape.page_bytes());
    return EDGE_OK;
}

edge_status edge_cache_restore(edge_cache *cache, int64_t length, const void *memory, uint64_t bytes) {
    return edge::guarded([&]() -> edge_status {
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
        if (const edge_status status = cache->make_room(0, length)) return status;
        const int64_t pages = cache->shape.pages_of(length), page_bytes = cache->shape.page_bytes();
        const auto copy = [&](int64_t first, int64_t last) {
            for (int64_t page = first; page < last; ++page) {
                std::memcpy(cache->pages[page], static_cast<const uint8_t *>(memory) + page * page_bytes,
                            size_t(page_bytes));
            }
        };
        edge::in_two(pages, pages * page_bytes, copy);
        if (cache->summaries) cache->summaries->rows = 0;
        cache->cut(length);
        return EDGE_OK;
    });
}
