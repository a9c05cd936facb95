// A fork-join pool. Work is handed out piece by piece, so a thread that the system holds up delays only its
// own piece. Waiting threads spin briefly (the next region of a decoder follows within microseconds), then park.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace edge {
namespace {

// 20 bits, less room for the failed claims that every thread makes at a region's end.
constexpr int64_t max_pieces = (1 << 20) - (1 << 12);
constexpr auto spin_time = std::chrono::microseconds(50);
constexpr int spins_per_clock_read = 64;

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// One atomic word describes the current region: a piece is claimed by adding 1 to `next`, and the generation and
// the count that come back with it say whether the claim is good. Regions' parameters can be read only with a
// good claim, and can change only after every claimed piece is done.
struct Ticket {
    uint32_t generation, count, next;
    static Ticket unpack(uint64_t word) {
        return {uint32_t(word >> 40), uint32_t(word >> 20) & 0xFFFFF, uint32_t(word) & 0xFFFFF};
    }
    static uint64_t pack(uint32_t generation, uint32_t count) {
        return uint64_t(generation & 0xFFFFFF) << 40 | uint64_t(count) << 20;
    }
};

}  // namespace
}  // namespace edge

struct edge_pool {
    explicit edge_pool(int32_t threads) : workers(threads) {
        for (int32_t worker = 1; worker < threads; ++worker) {
            helpers.emplace_back([this, worker] { help(worker); });
        }
    }

    ~edge_pool() {
        {
            std::lock_guard<std::mutex> lock(mutex);
            stopping.store(true);
        }
        wake.notify_all();
        for (std::thread &helper : helpers) helper.join();
    }

    void run(int64_t count, int64_t grain, edge_task task, void *argument) {
        if ((count + grain - 1) / grain > edge::max_pieces)
            grain = (count + edge::max_pieces - 1) / edge::max_pieces;
        const int64_t pieces = (count + grain - 1) / grain;
        region = {count, grain, task, argument};
        done.store(0, std::memory_order_relaxed);
        generation = (generation + 1) & 0xFFFFFF;
        ticket.store(edge::Ticket::pack(generation, uint32_t(pieces)));
        if (parked.load() > 0) {
            { std::lock_guard<std::mutex> lock(mutex); }
            wake.notify_all();
        }
        work(0);
        for (int spins = 0; done.load(std::memory_order_acquire) < pieces; ++spins) {
            edge::relax();
            // A helper may have been descheduled in the middle of its piece: let it have this core.
            if (spins > 20000) std::this_thread::yield();
        }
    }

    const int32_t workers;

   private:
    struct Region {
        int64_t count, grain;
        edge_task task;
        void *argument;
    };

    // Does pieces of the current region until none is left.
    void work(int32_t worker) {
        for (;;) {
            const edge::Ticket claim = edge::Ticket::unpack(ticket.fetch_add(1, std::memory_order_acq_rel));
            if (claim.next >= claim.count) return;
            const int64_t begin = claim.next * region.grain;
            const int64_t end = begin + region.grain < region.count ? begin + region.grain : region.count;
            region.task(region.argument, begin, end, worker);
            done.fetch_add(1, std::memory_order_release);
        }
    }

    bool work_waits() const {
        const edge::Ticket now = edge::Ticket::unpack(ticket.load());
        return now.next < now.count;
    }

    void help(int32_t worker) {
        using clock = std::chrono::steady_clock;
        while (!stopping.load(std::memory_order_relaxed)) {
            auto spin_until = clock::now() + edge::spin_time;
            for (int spins = 1;; ++spins) {
                if (work_waits()) {
                    work(worker);
                    spin_until = clock::now() + edge::spin_time;
                }
                edge::relax();
                if (spins % edge::spins_per_clock_read == 0 && clock::now() > spin_until) break;
            }
            std::unique_lock<std::mutex> lock(mutex);
            parked.fetch_add(1);
            wake.wait(lock, [this] { return stopping.load() || work_waits(); });
            parked.fetch_sub(1);
        }
    }

    Region region{};
    uint32_t generation = 0;
    alignas(64) std::atomic<uint64_t> ticket{0};
    alignas(64) std::atomic<int64_t> done{0};
    alignas(64) std::atomic<int32_t> parked{0};
    std::atomic<bool> stopping{false};
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> helpers;
};

edge_status edge_pool_create(int32_t threads, edge_pool **pool) {
    if (pool == nullptr) return edge::fail(EDGE_INVALID, "edge_pool_create: pool is NULL.");
    if (threads < 0 || threads > 1024) {
        return edge::fail(EDGE_INVALID, "The number of threads is %d; it must be 0 (automatic) to 1024.",
                          threads);
    }
    try {
        *pool = new edge_pool(threads > 0 ? threads : edge::default_threads());
    } catch (const std::exception &error) {
        return edge::fail(EDGE_NO_MEMORY, "Threads could not be started: %s.", error.what());
    }
    return EDGE_OK;
}

void edge_pool_destroy(edge_pool *pool) { delete pool; }

edge_parallel edge_pool_parallel(edge_pool *pool) {
    return {pool, pool->workers,
            [](void *context, int64_t count, int64_t grain, edge_task task, void *argument) {
                static_cast<edge_pool *>(context)->run(count, grain, task, argument);
            }};
}
