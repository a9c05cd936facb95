// What every function of the C border does first and last.
#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>

#include "abi/error.h"
#include "edge_operators.h"
#include "tiers/kernels.h"

namespace edge {

constexpr int64_t most_tokens = 1 << 24, most_columns = 1 << 30;  // far from overflow in sizes

// Turns what `body` throws into a status.
template <class Body>
edge_status guarded(const Body &body) {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return fail(EDGE_NO_MEMORY, "Out of memory; lower the context or the batch size.");
    } catch (const std::length_error &) {
        return fail(EDGE_NO_MEMORY,
                    "A size is beyond what memory can hold; lower the context or the batch size.");
    } catch (const std::exception &error) {
        return fail(EDGE_INVALID, "The library has a fault of its own (%s); please report it.", error.what());
    }
}

edge_status pick_kernels(const char *tier, const Kernels **kernels);
edge_status take_scratch(const edge_scratch *scratch, uint64_t bytes, uint8_t **memory);
bool parallel_is_usable(const edge_parallel *parallel);
// Of an operator over n rows; `what` names it.
edge_status check_host(const edge_host *host, int64_t n, const char *what, const Kernels **kernels);

}  // namespace edge
