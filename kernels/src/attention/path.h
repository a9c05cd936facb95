// The last blocks of a KV head as one token of a tree sees them: cached rows, then those of the tree on its path.
#pragma once

#include <cstdint>

#include "attention/cache.h"

namespace edge {

class PathBlocks {
   public:
    static constexpr int64_t most_blocks = 2;  // a ragged block of the cache and 64 rows of a tree

    static int64_t bytes(const CacheShape &shape) { return 2 * most_blocks * shape.block_bytes(); }

    // Puts the blocks from that of position `past` on into `memory`. mask: the tree's rows on the path, which
    // stand in the cache from `past` on.
    void build(const CacheView &cache, int64_t layer, int64_t head, int64_t past, uint64_t mask,
               uint8_t *memory);

    // From this position on, blocks are those of this path.
    int64_t start() const { return start_; }
    const uint8_t *keys(int64_t position) const { return block(position, 0); }
    const uint8_t *values(int64_t position) const { return block(position, 1); }

   private:
    uint8_t *block(int64_t position, int64_t which) const {
        return memory_ + ((position - start_) / attention_block * 2 + which) * block_bytes_;
    }

    uint8_t *memory_ = nullptr;
    int64_t start_ = 0, block_bytes_ = 0;
};

}  // namespace edge
