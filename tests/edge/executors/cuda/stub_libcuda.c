// Stands in for libcuda.so.1 in tests. It is no GPU: a kernel that runs here only leaves a line in the log, with its
// arguments. What it does keep is the driver's order of things: copies and kernels are queued and happen when
// somebody waits, a captured stream runs nothing, a context belongs to a thread, a failed kernel spoils what follows.
// Environment: STUB_GPUS, STUB_DRIVER, STUB_ARCHITECTURE, STUB_INTEGRATED, STUB_MEMORY, STUB_SHARED;
// STUB_FAIL ("cuInit=100,..."): what functions return; STUB_FAIL_RUN: the error of every kernel when it runs.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPS = 4096, MAX_PARAMS = 32, MAX_BLOCKS = 1024, PATTERN = 0xAA };
enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201 };
enum { NO_BINARY = 209, INVALID_PTX = 218, INVALID_HANDLE = 400, NOT_FOUND = 500, CAPTURING = 900 };

typedef struct {
    int recorded;
} Event;

typedef struct {
    char symbol[64];
    int count, widths[MAX_PARAMS], shared;
} Module;

typedef struct {
    enum { COPY, CLEAR, RECORD, RUN } kind;
    void *to;
    const void *from;
    size_t size;
    char text[512];
} Op;

typedef struct {
    int count;
    Op ops[MAX_OPS];
} Ops;

typedef struct {
    void *address;
    size_t size;
} Block;

static char log_text[1 << 20];
static size_t log_used;
static int live, sticky, capturing, context;
static size_t used_memory;
static Ops queue, captured;
static Block blocks[MAX_BLOCKS];
static __thread void *current;

static void note(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    log_used += (size_t)vsnprintf(log_text + log_used, sizeof log_text - log_used, format, arguments);
    va_end(arguments);
}

static long long setting(const char *name, long long otherwise) {
    const char *found = getenv(name);
    return found && *found ? atoll(found) : otherwise;
}

static int failure(const char *function) {
    const char *all = getenv("STUB_FAIL");
    const char *found = all ? strstr(all, function) : NULL;
    size_t length = strlen(function);
    if (found && found[length] == '=') return atoi(found + length + 1);
    return sticky;
}

#define FAIL_AS_ASKED()                \
    do {                               \
        int asked = failure(__func__); \
        if (asked) return asked;       \
    } while (0)
#define NEED_CONTEXT()                        \
    do {                                      \
        FAIL_AS_ASKED();                      \
        if (!current) return INVALID_CONTEXT; \
    } while (0)

static void flush(void) {
    for (int i = 0; i < queue.count && !sticky; i++) {
        Op *op = &queue.ops[i];
        if (op->kind == COPY) memmove(op->to, op->from, op->size);
        if (op->kind == CLEAR) memset(op->to, 0, op->size);
        if (op->kind == RECORD) ((Event *)op->to)->recorded = 1;
        if (op->kind == RUN) {
            note("%s\n", op->text);
            sticky = (int)setting("STUB_FAIL_RUN", 0);
        }
    }
    queue.count = 0;
}

static int add(Op op) {
    Ops *to = capturing ? &captured : &queue;
    if (to->count == MAX_OPS) abort();
    to->ops[to->count++] = op;
    return 0;
}

static int copy(void *to, const void *from, size_t size) {
    return add((Op){.kind = COPY, .to = to, .from = from, .size = size});
}

// For the tests.

const char *stub_log(void) { return log_text; }

int stub_live(void) { return live; }

int stub_queued(void) { return queue.count; }

void stub_reset(void) {
    log_used = 0;
    log_text[0] = 0;
    live = sticky = capturing = 0;
    used_memory = 0;
    queue.count = captured.count = 0;
    memset(blocks, 0, sizeof blocks);
    current = NULL;
}

// The driver's.

int cuGetErrorName(int code, const char **text) {
    *text = code == OUT_OF_MEMORY   ? "CUDA_ERROR_OUT_OF_MEMORY"
            : code == NO_BINARY     ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
            : code == INVALID_PTX   ? "CUDA_ERROR_INVALID_PTX"
            : code == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
            : code == 700           ? "CUDA_ERROR_ILLEGAL_ADDRESS"
            : code == 999           ? "CUDA_ERROR_UNKNOWN"
                                    : NULL;
    return *text ? 0 : INVALID_VALUE;
}

int cuGetErrorString(int code, const char **text) {
    *text = code == 700   ? "an illegal memory access was encountered"
            : code == 999 ? "unknown error"
                          : "a short reason";
    return 0;
}

int cuInit(unsigned flags) {
    FAIL_AS_ASKED();
    return flags ? INVALID_VALUE : setting("STUB_GPUS", 1) ? 0 : NO_DEVICE;
}

int cuDriverGetVersion(int *version) {
    FAIL_AS_ASKED();
    *version = (int)setting("STUB_DRIVER", 12060);
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    FAIL_AS_ASKED();
    *device = ordinal + 7;  // a handle is not the ordinal
    return ordinal < setting("STUB_GPUS", 1) ? 0 : INVALID_DEVICE;
}

int cuDeviceGetName(char *name, int size, int device) {
    FAIL_AS_ASKED();
    snprintf(name, (size_t)size, "Stub %d", device - 7);
    return 0;
}

int cuDeviceTotalMem_v2(size_t *size, int device) {
    FAIL_AS_ASKED();
    *size = (size_t)setting("STUB_MEMORY", 1 << 30);
    return 0;
}

int cuDeviceGetAttribute(int *value, int which, int device) {
    FAIL_AS_ASKED();
    int architecture = (int)setting("STUB_ARCHITECTURE", 87);
    switch (which) {
        case 16:
            *value = 8;
            return 0;
        case 18:
            *value = (int)setting("STUB_INTEGRATED", 0);
            return 0;
        case 75:
            *value = architecture / 10;
            return 0;
        case 76:
            *value = architecture % 10;
            return 0;
        case 97:
            *value = (int)setting("STUB_SHARED", 163 << 10);
            return 0;
        default:
            return INVALID_VALUE;
    }
}

int cuDevicePrimaryCtxRetain(void **made, int device) {
    FAIL_AS_ASKED();
    if (device < 7) return INVALID_DEVICE;
    *made = &context;
    live++;
    return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    live--;
    return failure(__func__);
}

int cuCtxSetCurrent(void *made) {
    FAIL_AS_ASKED();
    current = made;
    return 0;
}

int cuMemGetInfo_v2(size_t *free_size, size_t *total) {
    NEED_CONTEXT();
    *total = (size_t)setting("STUB_MEMORY", 1 << 30);
    *free_size = *total - used_memory;
    return 0;
}

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    NEED_CONTEXT();
    if (capturing) return CAPTURING;
    if (!size) return INVALID_VALUE;
    if (used_memory + size > (size_t)setting("STUB_MEMORY", 1 << 30)) return OUT_OF_MEMORY;
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (!blocks[i].address) {
            blocks[i] = (Block){aligned_alloc(256, (size + 255) / 256 * 256), size};
            memset(blocks[i].address, PATTERN, size);
            *address = (uint64_t)(uintptr_t)blocks[i].address;
            used_memory += size;
            live++;
            return 0;
        }
    return OUT_OF_MEMORY;
}

int cuMemFree_v2(uint64_t address) {
    flush();
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (address && (uint64_t)(uintptr_t)blocks[i].address == address) {
            free(blocks[i].address);
            used_memory -= blocks[i].size;
            blocks[i].address = NULL;
            live--;
            return failure(__func__);
        }
    return INVALID_VALUE;
}

int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    NEED_CONTEXT();
    if (flags) return INVALID_VALUE;
    *address = malloc(size);
    live++;
    return 0;
}

int cuMemFreeHost(void *address) {
    free(address);
    live--;
    return failure(__func__);
}

int cuMemsetD8Async(uint64_t address, unsigned char value, size_t size, void *stream) {
    NEED_CONTEXT();
    return value ? INVALID_VALUE : add((Op){.kind = CLEAR, .to = (void *)(uintptr_t)address, .size = size});
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    NEED_CONTEXT();
    return copy((void *)(uintptr_t)to, from, size);
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    NEED_CONTEXT();
    return copy(to, (void *)(uintptr_t)from, size);
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void *stream) {
    NEED_CONTEXT();
    return copy((void *)(uintptr_t)to, (void *)(uintptr_t)from, size);
}

int cuStreamCreate(void **stream, unsigned flags) {
    NEED_CONTEXT();
    *stream = malloc(1);
    live++;
    return flags == 1 ? 0 : INVALID_VALUE;
}

int cuStreamDestroy_v2(void *stream) {
    free(stream);
    live--;
    return failure(__func__);
}

int cuStreamSynchronize(void *stream) {
    NEED_CONTEXT();
    if (capturing) return CAPTURING;
    flush();
    return sticky;
}

int cuStreamBeginCapture_v2(void *stream, int mode) {
    NEED_CONTEXT();
    if (mode != 2) return INVALID_VALUE;
    capturing = 1;
    captured.count = 0;
    return 0;
}

int cuStreamEndCapture(void *stream, void **graph) {
    NEED_CONTEXT();
    capturing = 0;
    *graph = malloc(sizeof captured);
    memcpy(*graph, &captured, sizeof captured);
    live++;
    return 0;
}

int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    NEED_CONTEXT();
    if (flags) return INVALID_VALUE;
    *made = malloc(sizeof captured);
    memcpy(*made, graph, sizeof captured);
    live++;
    return 0;
}

int cuGraphLaunch(void *made, void *stream) {
    NEED_CONTEXT();
    const Ops *ops = made;
    note("graph of %d\n", ops->count);
    for (int i = 0; i < ops->count; i++) add(ops->ops[i]);
    return 0;
}

int cuGraphExecDestroy(void *made) {
    free(made);
    live--;
    return failure(__func__);
}

int cuGraphDestroy(void *graph) {
    free(graph);
    live--;
    return failure(__func__);
}

int cuEventCreate(void **event, unsigned flags) {
    NEED_CONTEXT();
    if (flags & ~2u) return INVALID_VALUE;
    *event = calloc(1, sizeof(Event));
    live++;
    return 0;
}

int cuEventRecord(void *event, void *stream) {
    NEED_CONTEXT();
    ((Event *)event)->recorded = 0;
    return add((Op){.kind = RECORD, .to = event});
}

int cuEventSynchronize(void *event) {
    NEED_CONTEXT();
    flush();
    return sticky;
}

int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    NEED_CONTEXT();
    *milliseconds = 1.5f;
    return ((Event *)start)->recorded && ((Event *)end)->recorded ? 0 : INVALID_HANDLE;
}

int cuEventDestroy_v2(void *event) {
    free(event);
    live--;
    return failure(__func__);
}

// An image is a line: `CUBIN 87 SYMBOL WIDTHS...`, or `PTX SYMBOL WIDTHS...`; widths of parameters, in bytes.
int cuModuleLoadDataEx(void **made, const char *image, unsigned options, int *names, void **values) {
    NEED_CONTEXT();
    int architecture = 0, used = 0, own = (int)setting("STUB_ARCHITECTURE", 87);
    Module *module = calloc(1, sizeof(Module));
    if (sscanf(image, "CUBIN %d %63s%n", &architecture, module->symbol, &used) == 2) {
        int same = setting("STUB_INTEGRATED", 0) ? architecture == own : architecture / 10 == own / 10;
        if (options || !same || architecture > own) return free(module), NO_BINARY;
    } else if (sscanf(image, "PTX %63s%n", module->symbol, &used) != 1 || options != 2) {
        if (options == 2 && names[0] == 5 && names[1] == 6)
            snprintf(values[0], (size_t)values[1], "line 1: a fault\n");
        return free(module), INVALID_PTX;
    }
    for (int width = 0, more = 0; sscanf(image + used, "%d%n", &width, &more) == 1; used += more)
        module->widths[module->count++] = width;
    note("load %.*s\n", (int)strcspn(image, "\n"), image);
    *made = module;
    live++;
    return 0;
}

int cuModuleUnload(void *module) {
    free(module);
    live--;
    return failure(__func__);
}

int cuModuleGetFunction(void **function, void *module, const char *symbol) {
    NEED_CONTEXT();
    *function = module;
    return strcmp(symbol, ((Module *)module)->symbol) ? NOT_FOUND : 0;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
    NEED_CONTEXT();
    if (attribute != 8 || value > setting("STUB_SHARED", 163 << 10)) return INVALID_VALUE;
    ((Module *)function)->shared = value;
    return 0;
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
    NEED_CONTEXT();
    const Module *module = function;
    int limit = module->shared ? module->shared : 48 << 10;
    if (extra || !stream || (int)shared > limit) return INVALID_VALUE;
    Op op = {.kind = RUN};
    int used = snprintf(op.text, sizeof op.text, "run %s grid %u %u %u block %u %u %u shared %u with",
                        module->symbol, x, y, z, bx, by, bz, shared);
    for (int i = 0; i < module->count; i++) {
        uint64_t value = 0;
        memcpy(&value, parameters[i], (size_t)module->widths[i]);
        used += snprintf(op.text + used, sizeof op.text - (size_t)used, " %llx", (unsigned long long)value);
    }
    return add(op);
}
