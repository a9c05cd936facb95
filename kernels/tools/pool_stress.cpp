// Many short parallel regions of every size, and errands, with pauses in which threads park; for ThreadSanitizer.
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "edge.h"
#include "threads/pool.h"

namespace {

// Counts every place of plain memory up by one, in a region.
void count_up(const edge_parallel &parallel, std::vector<int> *counts) {
    parallel.run(
        parallel.context, int64_t(counts->size()), 3,
        [](void *argument, int64_t begin, int64_t end, int32_t) {
            for (int64_t i = begin; i < end; ++i) ++static_cast<int *>(argument)[i];
        },
        counts->data());
}

struct Errand {
    edge_parallel parallel;
    int regions;
    std::vector<int> counts;
};

void run_errand(void *argument) {
    Errand *errand = static_cast<Errand *>(argument);
    for (int region = 0; region < errand->regions; ++region) {
        count_up(errand->parallel, &errand->counts);
        if (region % 50 == 49) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

// Errands of several regions; the caller joins at once, after a while, or after a region of its own.
int errands(edge_pool *pool) {
    int errors = 0;
    const edge_parallel parallel = edge_pool_parallel(pool);
    for (int round = 0; round < 400; ++round) {
        Errand errand{parallel, 1 + round % 60, std::vector<int>(1 + round % 90)};
        std::vector<int> own(20);
        edge::send(pool, run_errand, &errand);
        if (round % 3 == 1) std::this_thread::sleep_for(std::chrono::microseconds(round % 200));
        if (round % 3 == 2) count_up(parallel, &own);
        std::thread other([&] {
            if (round % 4 == 0) edge_pool_join(pool);
        });
        edge_pool_join(pool);
        other.join();
        edge_pool_join(pool);  // of nothing
        for (const int count : errand.counts) errors += count != errand.regions;
        for (const int count : own) errors += count != int(round % 3 == 2);
        count_up(parallel, &own);
    }
    return errors;
}

}  // namespace

int main() {
    int errors = 0;
    for (int threads = 1; threads <= 4; ++threads) {
        edge_pool *pool = nullptr;
        if (edge_pool_create(threads, &pool) != EDGE_OK) return 1;
        const edge_parallel parallel = edge_pool_parallel(pool);
        std::vector<int> counts(
            300);  // plain memory: a lost or doubled piece and a missing barrier both show
        for (int round = 0; round < 2000; ++round) {
            const int64_t count = 1 + round * 7 % 300, grain = 1 + round % 5;
            parallel.run(
                parallel.context, count, grain,
                [](void *argument, int64_t begin, int64_t end, int32_t) {
                    for (int64_t i = begin; i < end; ++i) ++static_cast<int *>(argument)[i];
                },
                counts.data());
            for (int64_t i = 0; i < count; ++i) {
                errors += counts[size_t(i)] != 1;
                counts[size_t(i)] = 0;
            }
            if (round % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        errors += errands(pool);
        edge_pool_destroy(pool);
    }
    std::printf("%d errors\n", errors);
    return errors != 0;
}
