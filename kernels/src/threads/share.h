// How threads divide the pieces of a loop: each has a share of its own, and helps the others when it is done.
#pragma once

#include <atomic>
#include <cstdint>

namespace edge {

// What is left of one thread's share of a region, in one atomic word: a piece is claimed by adding 1 to `next`, and
// the `end` that comes back with it says whether the claim is good. A region's parameters can be read only with a
// good claim, and can change only after every claimed piece is done.
struct alignas(64) Share {
    std::atomic<uint64_t> word{0};

    void publish(uint32_t begin, uint32_t end) {
        word.store(uint64_t(end) << 32 | begin, std::memory_order_release);
    }

    bool claim(uint32_t *piece) {
        const uint64_t old = word.fetch_add(1, std::memory_order_acq_rel);
        *piece = uint32_t(old);
        return *piece < uint32_t(old >> 32);
    }
};

// Far from 32 bits: failed claims at a region's end count on.
constexpr int64_t max_pieces = 1 << 30;

}  // namespace edge
