// Computes the windows that have become complete, of one layer, on all threads.
#include "attention/summaries.h"

namespace edge {

SummaryShape::SummaryShape(const CacheShape &cache, const edge_sparse &sparse)
    : layers(cache.layers),
      kv_heads(cache.kv_heads),
      head_dim(cache.head_dim),
      capacity(cache.capacity),
      type(cache.type == EDGE_KV_F32 ? EDGE_KV_F32 : EDGE_KV_F16),
      fine{sparse.kernel_size, sparse.kernel_stride},
      coarse{coarsening * sparse.kernel_size, coarsening * sparse.kernel_stride} {}

void KeySummaries::update(const edge_parallel &parallel, const Kernels &kernels, const CacheView &cache,
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
