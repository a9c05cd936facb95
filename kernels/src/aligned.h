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

}  // namespace edge
