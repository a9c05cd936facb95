// Counts the allocations of a call. Loaded before everything else (LD_PRELOAD), it stands in for the C library's
// allocator (glibc's), which operator new uses as well.
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "edge.h"

namespace {

std::atomic<int64_t> allocations{0};
int64_t counted = 0;

}  // namespace

extern "C" {

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

EDGE_API void *malloc(size_t bytes) {
    ++allocations;
    return __libc_malloc(bytes);
}

EDGE_API void *calloc(size_t count, size_t bytes) {
    ++allocations;
    return __libc_calloc(count, bytes);
}

EDGE_API void *realloc(void *memory, size_t bytes) {
    ++allocations;
    return __libc_realloc(memory, bytes);
}

EDGE_API void *aligned_alloc(size_t alignment, size_t bytes) {
    ++allocations;
    return __libc_memalign(alignment, bytes);
}

EDGE_API int posix_memalign(void **memory, size_t alignment, size_t bytes) {
    ++allocations;
    *memory = __libc_memalign(alignment, bytes);
    return *memory == nullptr ? ENOMEM : 0;
}

// These call a function of libedge; afterwards allocations_counted() says how often any thread allocated meanwhile.

EDGE_API int64_t allocations_counted(void) { return counted; }

EDGE_API edge_status counted_forward(decltype(&edge_forward) call, edge_model *model, edge_step *steps,
                                     int32_t count, float *logits) {
    const int64_t before = allocations;
    const edge_status status = call(model, steps, count, logits);
    counted = allocations - before;
    return status;
}

EDGE_API edge_status counted_sample(decltype(&edge_sample) call, const edge_sampling *sampling,
                                    const edge_draw *draw, edge_sample_result *result) {
    const int64_t before = allocations;
    const edge_status status = call(sampling, draw, result);
    counted = allocations - before;
    return status;
}

// One allocation of each kind, to see that they are counted.
EDGE_API void counted_example(void) {
    const int64_t before = allocations;
    volatile char *plain = new char[100];
    struct alignas(64) Line {
        char bytes[64];
    };
    volatile Line *line = new Line;
    counted = allocations - before;
    delete line;
    delete[] plain;
}

}  // extern "C"
