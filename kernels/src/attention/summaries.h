// Key summaries of sparse attention (InfLLM-V2's semantic kernels): means over windows of cached keys.
//
// A pure function of the rows as they are stored, computed when a query first needs them; windows that end in rows
// which were dropped or moved are computed again. They stand as blocks of keys do (cache.h), one window in the
// place of a position, in float16, or in float32 beside a float32 cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/cache.h"
#include "threads/pool.h"

namespace edge {

// Windows over consecutive positions: window j covers [j stride, j stride + size).
struct WindowGrid {
    int64_t size, stride;

    int64_t complete(int64_t rows) const { return rows < size ? 0 : (rows - size) / stride + 1; }
};

enum class SummaryLevel { fine, coarse };
constexpr SummaryLevel summary_levels[] = {SummaryLevel::fine, SummaryLevel::coarse};

// Sizes, strides and places of the summaries of a cache. Coarse windows are four times the fine ones.
struct SummaryShape {
    static constexpr int64_t coarsening = 4;

    int64_t layers, kv_heads, head_dim, capacity;
    edge_kv_type type;
    WindowGrid fine, coarse;

    SummaryShape(const CacheShape &cache, const edge_sparse &sparse);

    const WindowGrid &grid(SummaryLevel level) const { return level == SummaryLevel::fine ? fine : coarse; }
    int64_t element_bytes() const { return type == EDGE_KV_F16 ? 2 : 4; }
    int64_t block_bytes() const { return attention_block * head_dim * element_bytes(); }
    // A page holds one block of coarse windows and the fine ones that start with them.
    int64_t head_bytes() const { return (coarsening + 1) * block_bytes(); }
    int64_t page_bytes() const { return layers * kv_heads * head_bytes(); }
    int64_t pages() const { return pages_of(capacity); }
    // Those of the windows that are complete in `rows` rows.
    int64_t pages_of(int64_t rows) const {
        const int64_t fine_windows = coarsening * attention_block;
        return std::max((fine.complete(rows) + fine_windows - 1) / fine_windows,
                        (coarse.complete(rows) + attention_block - 1) / attention_block);
    }
    uint64_t bytes() const { return uint64_t(pages() * page_bytes()); }
};

// Writes the mean of one window to its place in `block`. keys_at(position) is the block of keys that holds it.
template <class KeysAt>
void summarise(const Kernels &kernels, const SummaryShape &shape, edge_kv_type key_type,
               const WindowGrid &grid, int64_t window, const KeysAt &keys_at, uint8_t *block) {
    float sums[max_head_dim];
    std::fill_n(sums, shape.head_dim, 0.0f);
    const int64_t first = window * grid.stride;
    for (int64_t at = first; at < first + grid.size; at += key_group) {
        kernels.add_keys(key_type, shape.head_dim, keys_at(at), at % attention_block / key_group, sums);
    }
    const float factor = 1.0f / float(grid.size);
    for (int64_t d = 0; d < shape.head_dim; ++d) sums[d] *= factor;
    if (key_type == EDGE_KV_INT4) kernels.rotate(sums, shape.head_dim);  // back
    uint16_t halves[max_head_dim];
    if (shape.type == EDGE_KV_F16) kernels.to_half(sums, shape.head_dim, halves);
    const int64_t lane = window % key_group;
    const int64_t place = (window % attention_block - lane) * shape.head_dim + lane;
    for (int64_t d = 0; d < shape.head_dim; ++d) {
        if (shape.type == EDGE_KV_F16) {
            reinterpret_cast<uint16_t *>(block)[place + key_group * d] = halves[d];
        } else {
            reinterpret_cast<float *>(block)[place + key_group * d] = sums[d];
        }
    }
}

// The summaries of one cache, in memory that somebody else owns.
class KeySummaries {
   public:
    KeySummaries(const CacheShape &cache, const edge_sparse &sparse) : shape(cache, sparse) {}

    // The block that holds window `window`.
    uint8_t *block(int64_t layer, int64_t head, SummaryLevel level, int64_t window) const {
        const int64_t blocks = level == SummaryLevel::fine ? SummaryShape::coarsening : 1;
        const int64_t index = window / attention_block;
        const int64_t piece = level == SummaryLevel::fine ? index % blocks : SummaryShape::coarsening;
        uint8_t *const page = pages ? pages[index / blocks] : memory + index / blocks * shape.page_bytes();
        return page + (layer * shape.kv_heads + head) * shape.head_bytes() + piece * shape.block_bytes();
    }

    // Computes the windows of a layer that are complete in `to` rows and were not in `rows`.
    void update(const edge_parallel &parallel, const Kernels &kernels, const CacheView &cache, int64_t layer,
                int64_t to) const;

    const SummaryShape shape;
    uint8_t *memory = nullptr;        // shape.bytes() in one piece ...
    uint8_t *const *pages = nullptr;  // ... or pages, as of a CacheView
    int64_t rows = 0;                 // whose complete windows are up to date, in every layer
};

}  // namespace edge
