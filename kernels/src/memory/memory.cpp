// Memory in huge pages: with 4 KB pages the page walks of streaming reads cost a third of the bandwidth.
#include "memory/memory.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>

#include "abi/error.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace {

constexpr uint64_t huge_page = 2 << 20;

#if defined(__linux__)
constexpr int populate_read = 22;  // MADV_POPULATE_READ of Linux 5.14, which older headers lack
#endif

uint64_t mapped_bytes(uint64_t bytes) { return (bytes + huge_page - 1) / huge_page * huge_page; }

}  // namespace

namespace edge {

void *map_memory(uint64_t bytes, Commit commit) {
    // One page more than needed, so that the region can start at a huge page's boundary; the rest goes back.
    const uint64_t size = mapped_bytes(bytes);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (commit == Commit::when_written ? MAP_NORESERVE : 0);
    void *raw = mmap(nullptr, size + huge_page, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    uint8_t *start = static_cast<uint8_t *>(raw);
    uint8_t *aligned = start + (huge_page - reinterpret_cast<uintptr_t>(start) % huge_page) % huge_page;
    if (aligned > start) munmap(start, size_t(aligned - start));
    const size_t behind = size_t(start + huge_page - aligned);
    if (behind > 0) munmap(aligned + size, behind);
#if defined(MADV_HUGEPAGE)
    madvise(aligned, size, MADV_HUGEPAGE);  // without huge pages the region still works, only slower
#endif
    return aligned;
}

void unmap_memory(void *memory, uint64_t bytes) { munmap(memory, mapped_bytes(bytes)); }

void decommit_memory(void *part, uint64_t bytes) {
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), start = reinterpret_cast<uintptr_t>(part);
    const uintptr_t first = (start + page - 1) / page * page, last = (start + bytes) / page * page;
    if (last > first) madvise(reinterpret_cast<void *>(first), last - first, MADV_DONTNEED);
}

}  // namespace edge

edge_status edge_region_create(uint64_t bytes, void **region) {
    constexpr uint64_t most_bytes = uint64_t(1) << 46;
    if (bytes == 0 || bytes > most_bytes || region == nullptr) {
        return edge::fail(EDGE_INVALID, "edge_region_create: an impossible size.");
    }
    *region = edge::map_memory(bytes, edge::Commit::all);
    if (*region == nullptr) {
        return edge::fail(EDGE_NO_MEMORY,
                          "%llu MB for the weights could not be had; leave them in the mapped file.",
                          (unsigned long long)(bytes / 1000000));
    }
    return EDGE_OK;
}

void edge_region_destroy(void *region, uint64_t bytes) {
    if (region != nullptr) edge::unmap_memory(region, bytes);
}

edge_status edge_region_rest(void *region, uint64_t bytes, int32_t file) {
    if (region == nullptr || bytes == 0) return edge::fail(EDGE_INVALID, "edge_region_rest: no region.");
#if defined(__linux__)
    struct stat found;
    if (fstat(file, &found) != 0 || found.st_size < 0 || uint64_t(found.st_size) < bytes) {
        return edge::fail(EDGE_INVALID, "edge_region_rest: the file is shorter than the region.");
    }
    // What follows the file in its last page are zeros; the pages behind it stay the region's own.
    if (mmap(region, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0) == region) return EDGE_OK;
    return edge::fail(EDGE_INVALID, "edge_region_rest: the file can't be mapped.");
#else
    (void)file;
    return edge::fail(EDGE_UNSUPPORTED, "This system can't move memory.");
#endif
}

edge_status edge_region_move(void *from, void *to, uint64_t bytes) {
    if (from == nullptr || to == nullptr || bytes == 0) {
        return edge::fail(EDGE_INVALID, "edge_region_move: a region is missing.");
    }
#if defined(__linux__)
    const uint64_t size = mapped_bytes(bytes);
    if (mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to) return EDGE_OK;
    return edge::fail(EDGE_NO_MEMORY, "edge_region_move: the system refuses to move memory.");
#else
    return edge::fail(EDGE_UNSUPPORTED, "This system can't move memory.");
#endif
}

edge_status edge_mapping_prefault(const void *address, uint64_t bytes) {
    if (address == nullptr || bytes == 0) {
        return edge::fail(EDGE_INVALID, "edge_mapping_prefault: the memory is missing.");
    }
#if defined(__linux__)
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t start = reinterpret_cast<uintptr_t>(address) / page * page;
    const size_t size = reinterpret_cast<uintptr_t>(address) + bytes - start;
    void *const memory = reinterpret_cast<void *>(start);
    if (madvise(memory, size, populate_read) == 0) return EDGE_OK;
    if (errno != EINVAL) return edge::fail(EDGE_INVALID, "The mapped file is shorter than its mapping.");
#endif
    return edge::fail(EDGE_UNSUPPORTED, "This system does not read mapped files ahead.");
}
