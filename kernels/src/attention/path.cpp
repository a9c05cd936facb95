// Copies the last blocks in the order of a token's path.
#include "attention/path.h"

#include <cstring>

namespace edge {

void PathBlocks::build(const CacheView &cache, int64_t layer, int64_t head, int64_t past, uint64_t mask,
                       uint8_t *memory) {
    memory_ = memory;
    start_ = past / attention_block * attention_block;
    block_bytes_ = cache.shape.block_bytes();
    if (past > start_) {
        std::memcpy(block(start_, 0), cache.keys(layer, head, start_), size_t(block_bytes_));
        std::memcpy(block(start_, 1), cache.values(layer, head, start_), size_t(block_bytes_));
    }
    int64_t position = past;
    for (int64_t row = past; mask != 0; ++row, mask >>= 1) {
        if ((mask & 1) == 0) continue;
        copy_row(cache.shape, true, cache.keys(layer, head, row), row, block(position, 0), position);
        copy_row(cache.shape, false, cache.values(layer, head, row), row, block(position, 1), position);
        ++position;
    }
}

}  // namespace edge
