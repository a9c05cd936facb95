// Keeps the last error of each thread.
#include "abi/error.h"

#include <cstdarg>
#include <cstdio>

namespace edge {
namespace {

thread_local char last_error[512];

}  // namespace

edge_status fail(edge_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

thread_local bool in_observer = false;

edge_status refuse_in_observer(const char *function) {
    if (!in_observer) return EDGE_OK;
    return fail(EDGE_INVALID, "An observer called %s, which has to wait until the pass is over.", function);
}

}  // namespace edge

const char *edge_last_error(void) { return edge::last_error; }
