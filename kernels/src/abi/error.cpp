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

}  // namespace edge

const char *edge_last_error(void) { return edge::last_error; }
