// Anonymous memory that starts at a huge page's boundary, in huge pages where the system has them.
#pragma once

#include <cstdint>

namespace edge {

// `when_written`: more may be asked for than the machine has, as long as it is not written.
enum class Commit { all, when_written };

// nullptr when it can't be had.
void *map_memory(uint64_t bytes, Commit commit);
void unmap_memory(void *memory, uint64_t bytes);
// Gives the memory of a part back to the system, but for what shares a small page with its neighbours; the address space
// stays, and has any content afterwards.
void decommit_memory(void *part, uint64_t bytes);

}  // namespace edge
