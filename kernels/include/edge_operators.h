/* The operators of a decoder layer, for the kernels of host runtimes: exactly the arithmetic of edge_forward.
 *
 * A layer is rms_norm_linear (queries, keys and values at once), kv_append, paged_attention, linear with a residual,
 * rms_norm_swiglu, linear with a residual. Tensors are dense rows in row-major order, float32 unless said otherwise.
 * An operator runs on the caller's threads and in the caller's scratch memory, of which it takes one piece per call,
 * and allocates nothing else. docs/operators.md has the same operators as torch, ExecuTorch and ONNX Runtime see them.
 */
#ifndef EDGE_OPERATORS_H
#define EDGE_OPERATORS_H

#include "edge.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EDGE_MAX_MATRICES 8 /* of one edge_rms_norm_linear */

/* Where an operator runs; tier NULL: the best. */
typedef struct {
    const edge_parallel *parallel;
    const edge_scratch *scratch;
    const char *tier;
} edge_host;

#define EDGE_MAX_WORKERS 64

/* Threads of a host that runs numbered tasks: run() calls task(argument, i) once for each i below `count`, on whatever
 * threads it has, and returns when all are done. `workers` should be the number of its threads. */
typedef struct {
    void *context;
    int32_t workers;
    void (*run)(void *context, int32_t count, void (*task)(void *argument, int32_t index), void *argument);
} edge_tasks;

/* A loop runner on such threads, on at most EDGE_MAX_WORKERS; `tasks` must outlive it. */
EDGE_API edge_parallel edge_tasks_parallel(const edge_tasks *tasks);

/* out[n][columns] = rows `tokens` of w, times `scale`. EDGE_VOCABULARY for a token that w has no row for. */
EDGE_API edge_status edge_embedding(const edge_host *host, const edge_matrix *w, const int64_t *tokens,
                                    int64_t n, float scale, float *out);

/* out[n][2][half]: cosines, then sines, of position * inverse_frequency[half], times `scale`; of a frequency of 0 they are
 * 1 and 0, so that the pair is left as it is. */
EDGE_API edge_status edge_rope_table(const int64_t *positions, int64_t n, const float *inverse_frequency,
                                     int64_t half, float scale, float *out);

/* out[n][sum of rows] = (x / rms(x) * norm * scale) * w^T, the results of the `count` matrices side by side. x is
 * [n][columns], norm [columns]. */
EDGE_API edge_status edge_rms_norm_linear(const edge_host *host, const float *x, int64_t n, const float *norm,
                                          float eps, float scale, const edge_matrix *w, int32_t count,
                                          int32_t activations, float *out);

/* out[n][rows] = silu(h * gate^T) * (h * up^T) of h = x / rms(x) * norm. */
EDGE_API edge_status edge_rms_norm_swiglu(const edge_host *host, const float *x, int64_t n, const float *norm,
                                          float eps, const edge_matrix *gate, const edge_matrix *up,
                                          int32_t activations, float *out);

/* out[n][rows] = residual[n][rows] + scale * (x[n][columns] * w^T); out may be residual. residual NULL: the product
 * alone, and scale must be 1. */
EDGE_API edge_status edge_linear_residual(const edge_host *host, const float *x, int64_t n,
                                          const edge_matrix *w, const float *residual, float scale,
                                          int32_t activations, float *out);

/* One layer's KV cache in memory of the caller: opaque, changed in place, zero at first. Pages of 256 positions as
 * src/attention/cache.h describes them with one layer; for sparse attention (sparse.enabled) the summaries of the keys
 * follow, a pure function of the rows. The memory starts at a multiple of 4 bytes. */
typedef struct {
    int32_t kv_type; /* edge_kv_type */
    int32_t heads, kv_heads, head_dim;
    int64_t capacity; /* in tokens */
    edge_sparse sparse;
    void *memory;
    uint64_t bytes; /* edge_layer_cache_bytes */
} edge_layer_cache;

/* The bytes that a cache takes; its `memory` and `bytes` are not looked at. */
EDGE_API edge_status edge_layer_cache_bytes(const edge_layer_cache *cache, uint64_t *bytes);

/* qkv[n][(heads + 2 kv_heads) * head_dim]: queries, keys and values. Rotates queries and keys by `rope`, as
 * edge_rope_table gives it, writes keys and values into the rows from `start` on and the summaries that these rows
 * complete, and queries[n][heads * head_dim]. With a tree the summaries stay as they are: they are those of the rows
 * before it. EDGE_CONTEXT if the cache has no room. */
EDGE_API edge_status edge_kv_append(const edge_host *host, const edge_layer_cache *cache, const float *qkv,
                                    const float *rope, int64_t n, int64_t start, const uint64_t *tree,
                                    float *queries);

/* out[n][heads * head_dim]: attention of the queries of rows start .. start + n, which are in the cache already, and
 * whose summaries are up to date. tree: [n] masks over those rows, NULL: causal. */
EDGE_API edge_status edge_paged_attention(const edge_host *host, const edge_layer_cache *cache,
                                          const float *queries, int64_t n, int64_t start,
                                          const uint64_t *tree, float *out);

/* Moves rows[0 .. count) (absolute, strictly ascending, >= start) to start, start + 1, ... and makes the summaries
 * those of the start + count rows: what follows a token tree. */
EDGE_API edge_status edge_kv_keep(const edge_host *host, const edge_layer_cache *cache, const int64_t *rows,
                                  int64_t count, int64_t start);

#ifdef __cplusplus
}
#endif

#endif
