// Loops on the threads of a host that only runs numbered tasks.
#include <algorithm>

#include "edge_operators.h"
#include "threads/share.h"

namespace {

struct Region {
    int64_t count, grain;
    edge_task task;
    void *argument;
    int32_t workers;
    edge::Share shares[EDGE_MAX_WORKERS];
};

// Does the pieces of its own share, then those that are left of the others'.
void work(void *argument, int32_t worker) {
    Region &region = *static_cast<Region *>(argument);
    for (int32_t i = 0; i < region.workers; ++i) {
        edge::Share &share = region.shares[(worker + i) % region.workers];
        for (uint32_t piece; share.claim(&piece);) {
            const int64_t begin = piece * region.grain, end = std::min(begin + region.grain, region.count);
            region.task(region.argument, begin, end, worker);
        }
    }
}

void run(void *context, int64_t count, int64_t grain, edge_task task, void *argument) {
    const edge_tasks &host = *static_cast<const edge_tasks *>(context);
    grain = std::max(grain, (count + edge::max_pieces - 1) / edge::max_pieces);
    const int64_t pieces = (count + grain - 1) / grain;
    Region region{count, grain, task, argument, std::min(host.workers, EDGE_MAX_WORKERS), {}};
    for (int64_t worker = 0; worker < region.workers; ++worker) {
        region.shares[worker].publish(uint32_t(pieces * worker / region.workers),
                                      uint32_t(pieces * (worker + 1) / region.workers));
    }
    host.run(host.context, region.workers, work, &region);
}

}  // namespace

edge_parallel edge_tasks_parallel(const edge_tasks *tasks) {
    if (tasks == nullptr || tasks->run == nullptr || tasks->workers <= 1) return {nullptr, 1, nullptr};
    return {const_cast<edge_tasks *>(tasks), std::min(tasks->workers, EDGE_MAX_WORKERS), run};
}
