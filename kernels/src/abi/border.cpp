// Tiers, scratch memory and threads as a caller of the C border gives them, checked.
#include "abi/border.h"

namespace edge {

edge_status pick_kernels(const char *tier, const Kernels **kernels) {
    *kernels = find_kernels(tier);
    if (*kernels != nullptr) return EDGE_OK;
    return fail(EDGE_UNSUPPORTED, "This CPU has no kernels called '%s'; it has: %s.", tier ? tier : "",
                edge_cpu_tiers());
}

edge_status take_scratch(const edge_scratch *scratch, uint64_t bytes, uint8_t **memory) {
    if (!scratch || !scratch->allocate) {
        return fail(EDGE_INVALID, "The operator needs scratch memory, got none.");
    }
    *memory = static_cast<uint8_t *>(scratch->allocate(scratch->context, bytes > 0 ? bytes : 1));
    if (*memory == nullptr) {
        return fail(EDGE_NO_MEMORY, "The caller has no %llu bytes of scratch memory.",
                    (unsigned long long)bytes);
    }
    return EDGE_OK;
}

bool parallel_is_usable(const edge_parallel *parallel) {
    constexpr int32_t most_workers = 1 << 16;
    return parallel != nullptr && parallel->workers >= 1 && parallel->workers <= most_workers &&
           (parallel->workers == 1 || parallel->run != nullptr);
}

edge_status check_host(const edge_host *host, int64_t n, const char *what, const Kernels **kernels) {
    if (host == nullptr || !parallel_is_usable(host->parallel)) {
        return fail(EDGE_INVALID, "%s: the host's threads are missing.", what);
    }
    if (n <= 0 || n > most_tokens) {
        return fail(EDGE_INVALID, "%s: %lld rows are out of range.", what, (long long)n);
    }
    return pick_kernels(host->tier, kernels);
}

}  // namespace edge
