// The KV cache of one sequence, in pages that sequences with the same beginning share until one of them writes there.
//
// A page holds 256 positions, [layer][kv_head][keys, values][block of 64 positions]: so the rows in use lie together, in
// huge pages, however short the sequence is. A block stands as the attention kernels read it:
//   keys    f16, f32: [16 positions each][head_dim][16]; int8, int16: [16 positions each][head_dim / w][16][w]
//   values  f16, f32: [position][head_dim]; int8, int16: [w positions each][head_dim][w]
// w: codes of 4 bytes together. Codes of 4 bits stand as those of int8 do, two that are 64 apart in a byte. After the
// codes of a block stand its 64 scales, one per position.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "attention/pages.h"
#include "edge.h"
#include "tiers/kernels.h"

namespace edge {

struct CacheShape {
    int64_t layers, kv_heads, head_dim, capacity;
    edge_kv_type type;

    int64_t row_bytes() const { return head_dim * element_bits(type) / 8; }
    int64_t scale_bytes() const { return has_scales(type) ? int64_t(sizeof(float)) : 0; }
    int64_t position_bytes() const { return 2 * layers * kv_heads * (row_bytes() + scale_bytes()); }
    int64_t block_bytes() const { return attention_block * (row_bytes() + scale_bytes()); }
    int64_t page_bytes() const { return layers * kv_heads * 2 * attention_blocks * block_bytes(); }
    int64_t pages_of(int64_t rows) const { return (rows + attention_chunk - 1) / attention_chunk; }
    int64_t pages() const { return pages_of(capacity); }
    uint64_t bytes_of(int64_t rows) const { return uint64_t(pages_of(rows) * page_bytes()); }
};

// Copies a row of position `from`, which stands in the block `source`, to its place for `to` in `target`.
void copy_row(const CacheShape &shape, bool is_key, uint8_t *source, int64_t from, uint8_t *target,
              int64_t to);

class KeySummaries;

// The rows of a cache, in memory that somebody else owns.
struct CacheView {
    // The block that holds `position`.
    uint8_t *keys(int64_t layer, int64_t head, int64_t position) const {
        return block(layer, head, position, true);
    }
    uint8_t *values(int64_t layer, int64_t head, int64_t position) const {
        return block(layer, head, position, false);
    }

    // Writes the row of one position.
    void store(const Kernels &kernels, int64_t layer, int64_t head, int64_t position, const float *key,
               const float *value) const;
    // Copies all layers' rows of one position to another.
    void copy(int64_t from, int64_t to) const;

    const CacheShape shape;
    uint8_t *memory = nullptr;          // of the pages, if they stand in one piece ...
    uint8_t *const *pages = nullptr;    // ... or where each of those in use stands
    KeySummaries *summaries = nullptr;  // of sparse attention, or nullptr

   private:
    uint8_t *block(int64_t layer, int64_t head, int64_t position, bool is_key) const {
        const int64_t piece = ((layer * shape.kv_heads + head) * 2 + !is_key) * attention_blocks +
                              position % attention_chunk / attention_block;
        const int64_t index = position / attention_chunk;
        return (pages ? pages[index] : memory + index * shape.page_bytes()) + piece * shape.block_bytes();
    }
};

// Where caches of one shape take their pages from, those of rows and those of summaries.
struct CachePools {
    CachePools(const CacheShape &shape, const edge_sparse &sparse);

    bool prepare() const;  // see PagePool

    std::shared_ptr<PagePool> rows, summaries;
};

}  // namespace edge

struct edge_cache : edge::CacheView {
    edge_cache(const edge::CacheShape &cache_shape, const edge_sparse &sparse, const edge::CachePools &pools);
    explicit edge_cache(const edge::CacheShape &cache_shape, const edge_sparse &sparse = {});
    ~edge_cache();
    edge_cache(const edge_cache &) = delete;

    // Before rows `first` .. `rows` are written: pages for them, which no other cache shares.
    edge_status make_room(int64_t first, int64_t rows);
    // Drops all rows after the first `rows`, and the pages that only they were in.
    void cut(int64_t rows);
    // Whether the other takes its pages from the same pools.
    bool is_akin(const edge_cache &other) const { return row_pages_.pool() == other.row_pages_.pool(); }
    bool takes_from(const edge::CachePools &pools) const { return row_pages_.pool() == pools.rows.get(); }
    // The first `rows` rows of one that is akin become the content.
    void share(const edge_cache &other, int64_t rows);

    std::atomic<int64_t> length{0};  // may be asked for while a pass runs

   private:
    edge::PageTable row_pages_;
    std::unique_ptr<edge::PageTable> summary_pages_;
    std::unique_ptr<edge::KeySummaries> own_summaries_;
};
