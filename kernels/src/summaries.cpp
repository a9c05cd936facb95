#include "summaries.h"

#include "error.h"
#include "memory.h"

namespace edge {

SummaryShape::SummaryShape(const CacheShape &cache, const edge_sparse &sparse)
    : layers(cache.layers),
      kv_heads(cache.kv_heads),
      head_dim(cache.head_dim),
      capacity(cache.capacity),
      type(cache.type == EDGE_KV_F32 ? EDGE_KV_F32 : EDGE_KV_F16),
      fine{sparse.kernel_size, sparse.kernel_stride},
      coarse{coarsening * sparse.kernel_size, coarsening * sparse.kernel_stride} {}

KeySummaries::~KeySummaries() {
    if (base_ != nullptr) unmap_memory(base_, uint64_t(shape.pages() * shape.page_bytes()));
}

edge_status KeySummaries::reserve() {
    const uint64_t bytes = uint64_t(shape.pages() * shape.page_bytes());
    base_ = static_cast<uint8_t *>(map_memory(bytes, Commit::when_written));
    if (base_ != nullptr) return EDGE_OK;
    return fail(EDGE_NO_MEMORY,
                "%llu MB of address space for key summaries could not be reserved; lower --context.",
                (unsigned long long)(bytes >> 20));
}

void KeySummaries::update(const edge_parallel &parallel, const Kernels &kernels, const edge_cache &cache,
                          int64_t layer, int64_t to) const {
    constexpr int64_t windows_per_piece = 16;
    for (const SummaryLevel level : summary_levels) {
        const WindowGrid &grid = shape.grid(level);
        const int64_t first = grid.complete(rows), count = grid.complete(to) - first;
        parallel_for(parallel, shape.kv_heads * count, windows_per_piece,
                     [&](int64_t begin, int64_t end, int32_t) {
                         for (int64_t index = begin; index < end; ++index) {
                             const int64_t head = index / count, window = first + index % count;
                             summarise(
                                 kernels, shape, cache.shape.type, grid, window,
                                 [&](int64_t position) { return cache.keys(layer, head, position); },
                                 block(layer, head, level, window));
                         }
                     });
    }
}

}  // namespace edge
