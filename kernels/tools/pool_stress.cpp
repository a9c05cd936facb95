// Many short parallel regions of every size, with pauses in which threads park; for ThreadSanitizer.
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "edge.h"

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
        edge_pool_destroy(pool);
    }
    std::printf("%d errors\n", errors);
    return errors != 0;
}
