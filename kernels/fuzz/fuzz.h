// What the fuzzers share: each has a `bool accepts(Input)`, which gives the bytes to one reader and says whether it
// took them. Memory errors and undefined behaviour are the sanitizers' to find; `require` states what must hold.
//
// With $EDGE_FUZZ_ACCEPT=1 an input that is refused is a failure: so the seeds are tested.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#define require(condition)                                                           \
    if (!(condition)) {                                                              \
        std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
        std::abort();                                                                \
    }

// The bytes of one run, taken from the front; behind their end stand zeros.
class Input {
   public:
    Input(const uint8_t *data, size_t size) : at_(data), end_(data + size) {}

    template <class T>
    T take() {
        T value{};
        take(&value, 1);
        return value;
    }
    template <class T>
    void take(T *values, size_t count) {
        const size_t bytes = std::min(count * sizeof(T), left());
        if (count > 0) std::memset(static_cast<void *>(values), 0, count * sizeof(T));
        if (bytes > 0) std::memcpy(static_cast<void *>(values), at_, bytes);
        at_ += bytes;
    }
    // A number from 0 to `most`.
    int64_t below_or(int64_t most) { return int64_t(take<uint32_t>() % uint64_t(most + 1)); }
    // Mostly a number that could be meant, sometimes any.
    int64_t size(int64_t usual) {
        const uint8_t choice = take<uint8_t>();
        return choice < 0xf0 ? usual : choice < 0xf8 ? take<int32_t>() : take<int64_t>();
    }
    std::string text(size_t bytes) {
        std::string text(std::min(bytes, left()), '\0');
        take(&text[0], text.size());
        return text;
    }
    size_t left() const { return size_t(end_ - at_); }

   private:
    const uint8_t *at_, *const end_;
};

bool accepts(Input input);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const bool must_accept = std::getenv("EDGE_FUZZ_ACCEPT") != nullptr;
    const bool accepted = accepts(Input(data, size));
    require(accepted || !must_accept);
    return 0;
}

// The sanitizer's own `new` ends the process where ours throws; and sizes that are absurd here should fail fast.
inline void *limited(size_t bytes, size_t alignment) {
    constexpr size_t most_bytes = 64 << 20;
    void *memory = nullptr;
    if (bytes > most_bytes || posix_memalign(&memory, alignment, bytes > 0 ? bytes : 1) != 0) {
        throw std::bad_alloc();
    }
    return memory;
}
void *operator new(size_t bytes) { return limited(bytes, 16); }
void *operator new(size_t bytes, std::align_val_t alignment) { return limited(bytes, size_t(alignment)); }
void *operator new(size_t bytes, const std::nothrow_t &) noexcept {
    return std::malloc(bytes > 0 ? bytes : 1);
}
void operator delete(void *memory) noexcept { std::free(memory); }
void operator delete(void *memory, size_t) noexcept { std::free(memory); }
void operator delete(void *memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void *memory, size_t, std::align_val_t) noexcept { std::free(memory); }
