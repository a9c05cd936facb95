// The last error of this thread, as one sentence.
#pragma once

#include "edge.h"

namespace edge {

// Records the formatted sentence for edge_last_error() and returns `status`.
__attribute__((format(printf, 2, 3))) edge_status fail(edge_status status, const char *format, ...);

// While an observer runs, a pass is in the middle of its model and cache: `function` may not touch them then.
class InObserver {
   public:
    InObserver();
    ~InObserver();
    InObserver(const InObserver &) = delete;
    InObserver &operator=(const InObserver &) = delete;
};
edge_status refuse_in_observer(const char *function);

}  // namespace edge
