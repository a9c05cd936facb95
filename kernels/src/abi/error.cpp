// Keeps the last error of each thread.
#include "abi/error.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace edge {
namespace {

thread_local char last_error[512];
thread_local bool in_observer = false;
// A thread's first look at its own variables allocates them; without observers none looks.
std::atomic<int> observers_running{0};

}  // namespace

edge_status fail(edge_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

InObserver::InObserver() {
    observers_running.fetch_add(1, std::memory_order_relaxed);
    in_observer = true;
}

InObserver::~InObserver() {
    in_observer = false;
    observers_running.fetch_sub(1, std::memory_order_relaxed);
}

edge_status refuse_in_observer(const char *function) {
    if (observers_running.load(std::memory_order_relaxed) == 0 || !in_observer) return EDGE_OK;
    return fail(EDGE_INVALID, "An observer called %s, which has to wait until the pass is over.", function);
}

}  // namespace edge

const char *edge_last_error(void) { return edge::last_error; }
