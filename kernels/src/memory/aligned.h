// Memory that starts at a cache line.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace edge {

class AlignedMemory {
   public:
    // Replaces the memory by `bytes` fresh ones, not initialised; throws std::bad_alloc.
    void reset(uint64_t bytes) {
        memory_.reset(static_cast<uint8_t *>(operator new(bytes > 0 ? bytes : 1, alignment)));
    }
    uint8_t *data() const { return memory_.get(); }

   private:
    static constexpr std::align_val_t alignment{64};
    struct Delete {
        void operator()(uint8_t *memory) const { operator delete(memory, alignment); }
    };
    std::unique_ptr<uint8_t, Delete> memory_;
};

// Plans or, unless memory is nullptr, places an array of `count` elements after the first `bytes` bytes of memory.
template <class T>
void place(uint8_t *memory, uint64_t *bytes, int64_t count, T **where) {
    *where = memory ? reinterpret_cast<T *>(memory + *bytes) : nullptr;
    *bytes += (uint64_t(count) * sizeof(T) + 63) / 64 * 64;
}

}  // namespace edge
