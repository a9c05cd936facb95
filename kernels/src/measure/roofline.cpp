// The machine's limits, measured: read bandwidth from huge pages, the arithmetic peaks of a tier, and what one
// parallel region costs.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "abi/error.h"
#include "threads/pool.h"
#include "tiers/kernels.h"

namespace edge {
namespace {

constexpr int64_t piece_bytes = 1 << 20, stream_bytes = 64 << 10;
constexpr int64_t peak_iterations = 200000;  // of one piece: some milliseconds
constexpr int64_t pieces_per_worker = 4;
constexpr int region_batches = 50, regions_per_batch = 100, most_spins = 10000;

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Adds up 64-bit words of a piece as two streams, with hints ahead: no other plain loop read faster.
uint64_t sum_words(const uint64_t *words) {
    constexpr int64_t stream = stream_bytes / 8, ahead = 2048 / 8;
    uint64_t sums[8] = {};
    for (int64_t start = 0; start < piece_bytes / 8; start += 2 * stream) {
        for (int64_t i = start; i < start + stream; i += 8) {
            __builtin_prefetch(words + i + ahead);
            __builtin_prefetch(words + i + stream + ahead);
            for (int c = 0; c < 8; ++c) sums[c] += words[i + c] + words[i + stream + c];
        }
    }
    uint64_t total = 0;
    for (const uint64_t sum : sums) total += sum;
    return total;
}

double read_rate(const edge_parallel &parallel, const void *memory, int64_t bytes,
                 std::atomic<int64_t> *sink) {
    const auto start = std::chrono::steady_clock::now();
    parallel_for(parallel, bytes / piece_bytes, 1, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t piece = begin; piece < end; ++piece) {
            const uint8_t *at = static_cast<const uint8_t *>(memory) + piece * piece_bytes;
            *sink += int64_t(sum_words(reinterpret_cast<const uint64_t *>(at)));
        }
    });
    return double(bytes / piece_bytes * piece_bytes) / seconds_since(start);
}

double peak_rate(const edge_parallel &parallel, int64_t (*loop)(int64_t), int64_t operations,
                 std::atomic<int64_t> *sink) {
    const int64_t pieces = pieces_per_worker * parallel.workers;
    const auto start = std::chrono::steady_clock::now();
    parallel_for(parallel, pieces, 1, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t piece = begin; piece < end; ++piece) *sink += loop(peak_iterations);
    });
    return double(pieces * peak_iterations * operations) / seconds_since(start);
}

// Every worker waits until all have begun, as they do when each has work to share: otherwise the caller alone would
// be done before the others notice. A runner that has fewer threads than workers only waits in vain for a while.
double region_time(const edge_parallel &parallel) {
    double times[region_batches];
    for (double &time : times) {
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < regions_per_batch; ++i) {
            std::atomic<int32_t> begun{0};
            parallel_for(parallel, parallel.workers, 1, [&](int64_t, int64_t, int32_t) {
                begun.fetch_add(1);
                for (int spins = 0; begun.load() < parallel.workers && spins < most_spins; ++spins) {}
            });
        }
        time = seconds_since(start) / regions_per_batch;
    }
    // The median: a moment without a processor does not count.
    std::nth_element(times, times + region_batches / 2, times + region_batches);
    return times[region_batches / 2];
}

}  // namespace
}  // namespace edge

edge_status edge_measure_roofline(const edge_parallel *parallel, const char *tier, const void *memory,
                                  uint64_t bytes, edge_roofline *out) {
    const edge::Kernels *kernels = edge::find_kernels(tier);
    const bool usable = parallel && parallel->workers >= 1 && (parallel->workers == 1 || parallel->run);
    if (!kernels || !usable || !memory || reinterpret_cast<uintptr_t>(memory) % 64 != 0 ||
        bytes < uint64_t(edge::piece_bytes) || !out) {
        return edge::fail(EDGE_INVALID, "edge_measure_roofline: an argument is wrong.");
    }
    std::atomic<int64_t> sink{0};
    out->read_bytes_per_second = edge::read_rate(*parallel, memory, int64_t(bytes), &sink);
    out->int8_per_second =
        edge::peak_rate(*parallel, kernels->int8_peak, kernels->int8_peak_operations, &sink);
    out->float_per_second =
        edge::peak_rate(*parallel, kernels->float_peak, kernels->float_peak_operations, &sink);
    out->region_seconds = edge::region_time(*parallel);
    return EDGE_OK;
}
