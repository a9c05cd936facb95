// Our own persistent threads, and the loop runner over any edge_parallel.
#pragma once

#include <cstdint>

#include "edge.h"

namespace edge {

// Runs body(begin, end, worker) over [0, count) in pieces of at most `grain`; small loops stay on this thread.
template <class Body>
void parallel_for(const edge_parallel &parallel, int64_t count, int64_t grain, const Body &body) {
    if (count <= 0) return;
    if (count <= grain || parallel.workers <= 1) {
        for (int64_t begin = 0; begin < count; begin += grain) {
            body(begin, begin + grain < count ? begin + grain : count, 0);
        }
        return;
    }
    parallel.run(
        parallel.context, count, grain,
        [](void *argument, int64_t begin, int64_t end, int32_t worker) {
            (*static_cast<const Body *>(argument))(begin, end, worker);
        },
        const_cast<Body *>(&body));
}

using Errand = void (*)(void *argument);

// Lets a thread of the pool run the task while the caller goes on, until edge_pool_join; here and now where none can. Bodies
// of its regions must not run regions themselves.
void send(edge_pool *pool, Errand task, void *argument);

// Performance cores that this process may use, within its affinity mask and cgroup quota; at least 1.
int32_t default_threads();

}  // namespace edge
