/* Runs an exported .pte with several KV caches: the C interface that edge's ExecuTorch executor opens.
 *
 * A program is the file in memory of the caller; a cache is one sequence with its own loaded methods. All caches of a
 * program share the memory of activations, so its calls must come one at a time. Functions return 0, or another
 * number and a sentence of edge_et_error(), which belongs to the calling thread.
 */
#ifndef EDGE_EXECUTORCH_RUNNER_H
#define EDGE_EXECUTORCH_RUNNER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGE_ET_API __attribute__((visibility("default")))
#define EDGE_ET_DIMENSIONS 2

typedef struct edge_et_program edge_et_program;
typedef struct edge_et_cache edge_et_cache;

/* An int64 tensor. */
typedef struct {
    const int64_t *data;
    int32_t dimensions, sizes[EDGE_ET_DIMENSIONS];
} edge_et_input;

/* Where a float32 or int64 result goes; room: its size in bytes; bytes: what it took. data NULL: not wanted. */
typedef struct {
    void *data;
    uint64_t room, bytes;
} edge_et_output;

EDGE_ET_API const char *edge_et_error(void);
/* data: a .pte, at a multiple of 64 bytes, that lives longer than the program. threads 0: the runtime's choice. */
EDGE_ET_API int edge_et_open(const void *data, uint64_t bytes, int32_t threads, edge_et_program **program);
EDGE_ET_API void edge_et_close(edge_et_program *program);
EDGE_ET_API int edge_et_threads(void);
/* 1 if the program has a method of this name. */
EDGE_ET_API int edge_et_has(const edge_et_program *program, const char *method);
/* The integers of a constant method: up to `room` of them, and their number. */
EDGE_ET_API int edge_et_constant(edge_et_program *program, const char *method, int64_t *values, int32_t room,
                                 int32_t *count);
EDGE_ET_API int edge_et_cache_create(edge_et_program *program, edge_et_cache **cache);
EDGE_ET_API void edge_et_cache_destroy(edge_et_cache *cache);
EDGE_ET_API int edge_et_run(edge_et_cache *cache, const char *method, const edge_et_input *inputs,
                            int32_t input_count, edge_et_output *outputs, int32_t output_count);

#ifdef __cplusplus
}
#endif

#endif
