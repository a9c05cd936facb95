/* libedge: the C interface of the CPU kernels and the native decoder.
 *
 * Every function that can fail returns an edge_status and leaves one sentence for edge_last_error() of the
 * same thread. Nothing throws or aborts across this border; shapes and sizes are checked here.
 * Matrices are in the canonical layout of edge/quant/packing.py. All pointers are borrowed unless said otherwise.
 */
#ifndef EDGE_H
#define EDGE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGE_API __attribute__((visibility("default")))

#define EDGE_ABI_VERSION 2
#define EDGE_MAX_TREE 64
#define EDGE_MAX_LOGPROBS 64

typedef enum {
    EDGE_OK = 0,
    EDGE_INVALID = 1,    /* an argument, shape or size is wrong */
    EDGE_NO_MEMORY = 2,  /* an allocation failed */
    EDGE_CONTEXT = 3,    /* the cache has no room for the tokens */
    EDGE_NOT_FINITE = 4, /* NaN or infinity in the result: damaged weights */
    EDGE_VOCABULARY = 5, /* a token id outside the vocabulary */
    EDGE_UNSUPPORTED = 6 /* this CPU or build lacks what was asked for */
} edge_status;

EDGE_API int32_t edge_abi_version(void);
EDGE_API const char *edge_last_error(void);

/* ---- Running in parallel ------------------------------------------------------------------------- */

/* One piece of a parallel loop: indices [begin, end), called on worker `worker` (0 .. workers - 1). */
typedef void (*edge_task)(void *argument, int64_t begin, int64_t end, int32_t worker);

/* A loop runner of a host runtime or of our own pool. run() calls `task` over [0, count) in pieces of at most
 * `grain` indices, on at most `workers` threads, and returns when all are done. */
typedef struct {
    void *context;
    int32_t workers;
    void (*run)(void *context, int64_t count, int64_t grain, edge_task task, void *argument);
} edge_parallel;

/* Scratch memory of the caller: `allocate` returns `bytes` bytes aligned to 64 that last until the operator returns,
 * or NULL. An operator calls it once, before it starts to work. */
typedef struct {
    void *context;
    void *(*allocate)(void *context, uint64_t bytes);
} edge_scratch;

/* Our own persistent threads; a second region at the same time runs on its caller's thread alone. threads = 0: the
 * performance cores within the cgroup quota. In a forked child, where they are gone, the first region starts new ones. */
typedef struct edge_pool edge_pool;
EDGE_API edge_status edge_pool_create(int32_t threads, edge_pool **pool);
EDGE_API void edge_pool_destroy(edge_pool *pool);
EDGE_API edge_parallel edge_pool_parallel(edge_pool *pool);
/* Waits for what a thread of it does for edge_decode. For any thread. */
EDGE_API void edge_pool_join(edge_pool *pool);
EDGE_API int32_t edge_default_threads(void);

/* ---- CPU tiers ------------------------------------------------------------------------------------ */

/* Names of the tiers this CPU can run, best first, as a comma-separated list; "portable" is always there. */
EDGE_API const char *edge_cpu_tiers(void);

/* Holds every kernel of a tier (NULL: the best) against the portable one; EDGE_UNSUPPORTED names the one that
 * differs. */
EDGE_API edge_status edge_self_test(const char *tier);

/* What the machine can do at most, in bytes and multiply-adds per second, and the seconds that one parallel region
 * takes when each worker has next to nothing to do; for judging the kernels. */
typedef struct {
    double read_bytes_per_second, int8_per_second, float_per_second, region_seconds;
} edge_roofline;

/* Reads `memory` once (give it far more than the caches hold) and runs register-only loops; takes some 50 ms. */
EDGE_API edge_status edge_measure_roofline(const edge_parallel *parallel, const char *tier,
                                           const void *memory, uint64_t bytes, edge_roofline *out);

/* ---- Weights -------------------------------------------------------------------------------------- */

typedef enum { EDGE_F32 = 0, EDGE_F16 = 1, EDGE_INT8 = 2, EDGE_INT4 = 3, EDGE_TERNARY = 4 } edge_kind;

typedef struct {
    int32_t kind;    /* edge_kind */
    int32_t group;   /* columns per scale, 0 = one per row */
    int32_t minimum; /* 1: int4 with a per-group minimum */
    int32_t reserved;
    int64_t rows, columns;
    const void *data;
    uint64_t bytes;
} edge_matrix;

/* How a linear operator treats its activations. */
typedef enum {
    EDGE_ACTIVATIONS_INT8 = 0, /* quantized per token and group on the fly, integer dot products */
    EDGE_ACTIVATIONS_F32 = 1,  /* exact: float32 products with the dequantized weights */
    EDGE_ACTIVATIONS_INT16 = 2 /* int8, and what that rounds away as int8 again: two dot products, added */
} edge_activations;

/* Number type of a KV cache. int4, int8, int16: one scale per token, head and layer, for keys and for values. int4 rows
 * are rotated, and their codes stand for the levels of a bell curve. */
typedef enum {
    EDGE_KV_F16 = 0,
    EDGE_KV_F32 = 1,
    EDGE_KV_INT8 = 2,
    EDGE_KV_INT16 = 3,
    EDGE_KV_INT4 = 4
} edge_kv_type;

/* Zeroed memory for weights, in huge pages where the system has them. */
EDGE_API edge_status edge_region_create(uint64_t bytes, void **region);
EDGE_API void edge_region_destroy(void *region, uint64_t bytes);
/* Puts the first bytes of an open file in the place of a region's, which gives its memory back: they are read from the
 * file when they are used. EDGE_UNSUPPORTED where edge_region_move is. Nobody may read the region meanwhile. */
EDGE_API edge_status edge_region_rest(void *region, uint64_t bytes, int32_t file);
/* Makes the memory of one region that of another of the same size, without a copy; the first is no region any more, as
 * after edge_region_destroy. Nobody may read either of them meanwhile. */
EDGE_API edge_status edge_region_move(void *from, void *to, uint64_t bytes);

/* Reads a mapped file (or a part) into memory and maps what is there, in huge pages where the system keeps the file so;
 * EDGE_UNSUPPORTED where the system has no such call. */
EDGE_API edge_status edge_mapping_prefault(const void *address, uint64_t bytes);

/* ---- Operators, for tests and host runtimes ------------------------------------------------------- */

/* y[n][rows] = x[n][columns] * w^T; tier NULL = best. */
EDGE_API edge_status edge_linear(const edge_parallel *parallel, const edge_scratch *scratch, const char *tier,
                                 const edge_matrix *w, int32_t activations, const float *x, int64_t n,
                                 float *y);

/* In a few words, which kernel computes edge_linear for such a matrix; its data is not read. NULL (and an error
 * sentence) for one that is refused. */
EDGE_API const char *edge_linear_kernel(const edge_matrix *w, int32_t activations);

/* out[columns] = row `row` of w in float32. */
EDGE_API edge_status edge_dequantize_row(const edge_matrix *w, int64_t row, float *out);

/* out[n][size] = x / rms(x) * weight * scale */
EDGE_API edge_status edge_rms_norm(const edge_parallel *parallel, const edge_scratch *scratch,
                                   const char *tier, const float *x, const float *weight, float eps,
                                   float scale, int64_t n, int64_t size, float *out);

/* InfLLM-V2 block-sparse attention; lengths in tokens. A query with more than dense_len rows on its path, its own
 * included, is sparse. It reads the first init_blocks blocks, the window_size / block_size blocks that end with its
 * own, and the best-scored others, so that first and best ones together are topk. */
typedef struct {
    int32_t enabled;                    /* 0: dense attention, the rest is not looked at */
    int32_t kernel_size, kernel_stride; /* multiples of 16; coarse kernels are four times that */
    int32_t block_size;                 /* 64 */
    int32_t init_blocks, window_size, topk, dense_len;
    int32_t exact_lse; /* 1: scores are normalised over the fine kernels, not the coarse ones */
} edge_sparse;

/* out[n][heads][head_dim] of queries of that shape after `past` earlier tokens; keys and values
 * [past + n][kv_heads][head_dim] go through a cache of `kv_type`. tree: [n] masks over the n tokens, NULL: causal.
 * sparse: NULL for dense attention. selected: NULL, or of sparse attention the ids of the blocks that were read,
 * [n][kv_heads][topk + window_size / block_size], ascending, then -1; a dense query has none. */
EDGE_API edge_status edge_attention(const edge_parallel *parallel, const char *tier, int32_t kv_type,
                                    int32_t heads, int32_t kv_heads, int32_t head_dim,
                                    const edge_sparse *sparse, const float *queries, const float *keys,
                                    const float *values, int64_t n, int64_t past, const uint64_t *tree,
                                    float *out, int32_t *selected);

/* ---- The decoder ---------------------------------------------------------------------------------- */

typedef struct {
    uint32_t size; /* sizeof(edge_config): guards against a mismatched caller */
    int32_t vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim;
    int32_t context;     /* longest sequence in tokens */
    int32_t max_batch;   /* most tokens of one edge_forward call, of all its steps */
    int32_t activations; /* edge_activations */
    int32_t kv_type;     /* edge_kv_type */
    float rms_norm_eps, embedding_scale, residual_scale, logit_scale;
    float rope_scale;               /* factor on cos and sin of the pairs that turn */
    const float *inverse_frequency; /* [head_dim / 2], copied; a pair of 0 is left as it is */
    edge_sparse sparse;
    const uint8_t
        *layers_without_rope; /* [layers], copied; not 0: queries and keys are not rotated. NULL: all are */
} edge_config;

typedef enum {
    EDGE_EMBEDDING = 0,
    EDGE_HEAD = 1, /* absent: tied to the embedding */
    EDGE_FINAL_NORM = 2,
    EDGE_ATTENTION_NORM = 3,
    EDGE_Q = 4,
    EDGE_K = 5,
    EDGE_V = 6,
    EDGE_O = 7,
    EDGE_MLP_NORM = 8,
    EDGE_GATE = 9,
    EDGE_UP = 10,
    EDGE_DOWN = 11,
    /* 12 .. 15 and those from 21 on are of a draft, edge_draft_role. The rest is float32, as norms are, and may be
     * absent: the biases together, added before anything else happens to queries, keys and values, and the norms
     * [1][head_dim] together, of every head before it is rotated. */
    EDGE_Q_BIAS = 16,
    EDGE_K_BIAS = 17,
    EDGE_V_BIAS = 18,
    EDGE_Q_NORM = 19,
    EDGE_K_NORM = 20
} edge_role;

typedef struct {
    int32_t role;  /* edge_role */
    int32_t layer; /* 0 for those outside the layers */
    edge_matrix matrix;
} edge_weight;

typedef struct edge_model edge_model; /* not thread-safe: one call at a time */
typedef struct edge_cache edge_cache;

/* The weights' memory must outlive the model; the pool's threads are borrowed through `parallel`. */
EDGE_API edge_status edge_model_create(const edge_config *config, const edge_weight *weights, int64_t count,
                                       const edge_parallel *parallel, const char *tier, edge_model **model);
EDGE_API void edge_model_destroy(edge_model *model);
/* Other weights in the place of some, of the same shapes. They must outlive the model, too; after a failure it has the old
 * ones. Caches keep the rows that those have computed. */
EDGE_API edge_status edge_model_replace(edge_model *model, const edge_weight *weights, int64_t count);
EDGE_API const char *edge_model_tier(const edge_model *model);
EDGE_API uint64_t edge_model_workspace_bytes(const edge_model *model);

/* One operator of a forward pass, as it has just ended. Fused operators are one event. */
typedef struct {
    const char *operation; /* its name; lives as long as the library, as does `kernel` */
    const char *kernel;    /* of a linear operator: edge_linear_kernel, else "" */
    int32_t layer;         /* -1 outside the layers */
    int32_t reserved;
    int64_t start_ns, nanoseconds; /* on the monotonic clock */
    uint64_t bytes, operations;    /* weights and cache rows it must move; multiply-adds */
    const float *output;           /* [rows][columns], `stride` floats apart; valid during the call only */
    int64_t rows, columns, stride;
} edge_event;

/* Called on the thread of edge_forward. What it calls of models and caches is refused: a pass is under way. It may not
 * destroy them. */
typedef void (*edge_observer)(void *context, const edge_event *event);

/* Reports every operator of later edge_forward calls to `observer`; NULL ends it. */
EDGE_API edge_status edge_model_observe(edge_model *model, edge_observer observer, void *context);

EDGE_API edge_status edge_cache_create(const edge_model *model, edge_cache **cache);
/* Bytes of all pages, those of key summaries too, that the model's caches use; a shared one counts once. */
EDGE_API uint64_t edge_model_cache_bytes(const edge_model *model);
EDGE_API void edge_cache_destroy(edge_cache *cache);
EDGE_API int64_t edge_cache_length(const edge_cache *cache); /* at any time, also during a pass */
EDGE_API edge_status edge_cache_truncate(edge_cache *cache, int64_t length);
/* Makes the first `length` rows of `cache` the content of `into`, a cache of the same model. The two share memory, in
 * pages of 256 rows, until one of them writes into a page: it then gets a copy of that page. */
EDGE_API edge_status edge_cache_fork(const edge_cache *cache, int64_t length, edge_cache *into);
/* After the first `length` rows keep rows[0 .. count) (absolute, strictly ascending, >= length), drop the rest. */
EDGE_API edge_status edge_cache_keep(edge_cache *cache, int64_t length, const int64_t *rows, int64_t count);
/* Grows the cache to `length` rows by repeating those it has: plausible values without a prefill, for timing. */
EDGE_API edge_status edge_cache_repeat(edge_cache *cache, int64_t length);

/* Counts up when the meaning of a cache's memory changes. */
#define EDGE_CACHE_LAYOUT 2
#define EDGE_CACHE_PAGE 256 /* rows */
/* A page of the rows in use, for a file; borrowed until the cache changes. All pages of a model's caches are alike. */
EDGE_API edge_status edge_cache_page(const edge_cache *cache, int64_t page, const void **memory,
                                     uint64_t *bytes);
/* Makes `memory`, the pages of `length` rows of a cache of the same shape one after the other, the content. */
EDGE_API edge_status edge_cache_restore(edge_cache *cache, int64_t length, const void *memory,
                                        uint64_t bytes);

/* Trained embeddings for rows of a step that stand for tokens which nobody knows yet, and keys and values that these rows
 * see before the sequence's own and no other row does (BiTA, arXiv 2401.12522). */
typedef struct {
    uint32_t size;      /* sizeof(edge_soft_config) */
    int32_t embeddings; /* 1 .. EDGE_MAX_TREE */
    int32_t prefix;     /* rows, 1 .. 256 */
    const float
        *embedding;    /* [embeddings][hidden_size], like rows of the model's embedding; copied, as are ... */
    const float *keys; /* ... [layers][prefix][kv_heads][head_dim], as they are after norms; never rotated */
    const float *values; /* [layers][prefix][kv_heads][head_dim] */
} edge_soft_config;

typedef struct edge_soft_prompt edge_soft_prompt;

/* For models of this one's shape with dense attention. Steps borrow it; it outlives their passes. */
EDGE_API edge_status edge_soft_create(const edge_model *model, const edge_soft_config *config,
                                      edge_soft_prompt **soft);
EDGE_API void edge_soft_destroy(edge_soft_prompt *soft);

/* What a pass appends to one sequence, and what is wanted of it. */
typedef struct {
    uint32_t size;            /* sizeof(edge_step) */
    int32_t n;                /* tokens */
    edge_cache *cache;        /* of the sequence */
    const int32_t *tokens;    /* [n] */
    const int32_t *positions; /* [n] RoPE positions, or NULL: continue the cache */
    const uint64_t *tree;     /* [n] masks over this step, or NULL: causal */
    int32_t logits_count;     /* of its last tokens, 0 .. n */
    int32_t layer_count;
    const int32_t *layer_indices; /* [layer_count] layers whose output is wanted */
    float *hidden;                /* [n][hidden_size] hidden states after the final norm, or NULL */
    float *layer_outputs;         /* [layer_count][n][hidden_size] the residual stream after each, or NULL */
    int32_t status;               /* written: edge_status of this step ... */
    char error[244];              /* ... and the sentence about it */
    const edge_soft_prompt *soft; /* of its soft rows, or NULL */
    int32_t soft_count;           /* of the n: the last ones are soft rows, 0 .. n - 1. tokens has numbers of
                                   * embeddings for them; the cache does not keep them */
} edge_step;

/* Appends every step to its cache and runs them all in one pass, max_batch tokens at most. What a step gives does not
 * depend on the others. logits: [the sum of the steps' logits_count][vocab_size], in their order. A step that fails
 * leaves its cache as it was and the others undisturbed; its rows of logits mean nothing. Returns EDGE_OK, the status of
 * the first step that failed, or that of a pass of which nothing was run (no step has a status other than EDGE_OK then):
 * too many tokens, or two steps of one cache. */
EDGE_API edge_status edge_forward(edge_model *model, edge_step *steps, int32_t count, float *logits);

/* ---- Drafts --------------------------------------------------------------------------------------- */

/* A small network beside a model, its target, that guesses how a sequence goes on: EAGLE-2 (arXiv 2406.16858), where
 * wanted with a head over some tokens only (FR-Spec, arXiv 2502.14856), EAGLE-3 (arXiv 2503.01840), or a layer for the
 * token after next (arXiv 2412.19437). Row i of its cache is made of the target's embedding of token i + 1 and hidden
 * state of token i. A block draft (DSpark, DFlash) has a block_size: its row i is made of hidden states of token i
 * alone, and behind the last one it guesses from a block of rows that all see each other. */
typedef struct {
    uint32_t size; /* sizeof(edge_draft_config) */
    int32_t intermediate_size, layers, heads, kv_heads, head_dim;
    int32_t window;    /* rows that attention sees, its own included; 0: all */
    int32_t kv_type;   /* edge_kv_type */
    int32_t head_rows; /* of a head of its own; 0: the target's head */
    float rms_norm_eps, residual_scale;
    float rope_scale;               /* factor on cos and sin of the pairs that turn */
    const float *inverse_frequency; /* [head_dim / 2], copied; NULL: queries and keys are not rotated */
    const int32_t *head_tokens;     /* [head_rows] the tokens of its head's rows, each once, copied */
    int32_t taps; /* hidden states of the target that fc joins; the embedding then stands beside what comes of
                   * them where the only layer's attention reads (EAGLE-3). 0: fc joins the embedding with one */
    float logit_scale; /* factor on states before the head */
    /* Of a block draft, whose fc joins hidden states at the taps and nothing else, in any number of layers. A block
     * has block_size rows (0: no block draft): of the last token, the anchor, then of mask_token. The anchor's own row
     * tells the first token if anchor_tells, else the row after it. markov_rank: columns of the Markov head, which adds
     * to logits by the token before; 0: none. confidence: whether a head says how likely a row's best token is right. */
    int32_t block_size, mask_token, anchor_tells, markov_rank, confidence;
} edge_draft_config;

/* A draft's weights have these roles, those of edge_role up to EDGE_DOWN that are in a layer, of which the first layer
 * may lack the attention norm, EDGE_FINAL_NORM where states are normed before the head, and EDGE_HEAD,
 * [head_rows][hidden_size], for a head of its own. With taps the attention norm is none, and q, k and v have
 * 2 hidden_size columns: embedding, then hidden state. A block draft has norms of heads where wanted, every norm of a
 * layer, EDGE_FINAL_NORM, EDGE_DRAFT_HIDDEN_NORM behind fc, and neither a bias nor a norm of embeddings. */
typedef enum {
    EDGE_DRAFT_FC = 12,      /* [hidden_size][2 hidden_size], the embedding's first, or [taps hidden_size] */
    EDGE_DRAFT_FC_BIAS = 13, /* float32, as are the norms; may be absent */
    EDGE_DRAFT_EMBEDDING_NORM = 14, /* without taps these two may be absent together */
    EDGE_DRAFT_HIDDEN_NORM = 15,
    EDGE_DRAFT_MARKOV_BEFORE = 21,  /* [vocab_size][markov_rank], of the token before */
    EDGE_DRAFT_MARKOV_AFTER = 22,   /* [head_rows or vocab_size][markov_rank], of the head's rows */
    EDGE_DRAFT_CONFIDENCE = 23,     /* float32 [1][hidden_size + markov_rank] */
    EDGE_DRAFT_CONFIDENCE_BIAS = 24 /* float32 [1][1] */
} edge_draft_role;

typedef struct edge_draft edge_draft; /* a call of it is one of its target: one at a time */

/* The target must outlive the draft: its embedding, head, tier and threads are used. So must the weights' memory. */
EDGE_API edge_status edge_draft_create(const edge_model *target, const edge_draft_config *config,
                                       const edge_weight *weights, int64_t count, edge_draft **draft);
EDGE_API void edge_draft_destroy(edge_draft *draft);
EDGE_API uint64_t edge_draft_workspace_bytes(const edge_draft *draft);
/* Bytes of all pages that its caches use. */
EDGE_API uint64_t edge_draft_cache_bytes(const edge_draft *draft);
/* A cache for edge_draft_run, with the functions of edge_cache. */
EDGE_API edge_status edge_draft_cache_create(const edge_draft *draft, edge_cache **cache);

#define EDGE_MAX_DRAFT_BRANCHES 16
/* The Markov head chooses among so many of a row's likeliest tokens; the others keep the logits that they had. */
#define EDGE_DRAFT_MARKOV_CANDIDATES 64

/* Rows to append, and what to try behind them. */
typedef struct {
    uint32_t size;         /* sizeof(edge_draft_step) */
    int32_t n;             /* rows */
    edge_cache *cache;     /* of the sequence */
    int64_t position;      /* of the first row in the sequence, behind all of the cache; there may be gaps */
    const int32_t *tokens; /* [n] the token after the one of each row; the last is the root of the tree */
    const float
        *hidden;   /* [n][hidden_size] the target's hidden states of the rows; with taps as many for each */
    int32_t steps; /* 0 .. EDGE_MAX_TREE; 0: only append */
    int32_t branches;    /* 1 .. EDGE_MAX_DRAFT_BRANCHES: leaves of a step, and children of each */
    int32_t rows;        /* most tokens of any use: no step goes on behind any but the best; 0: all are */
    float least_logprob; /* nor behind one that is less likely */
    const float *least_gains; /* [steps], or NULL: what the leaves of step i > 0 must promise together */
    int32_t node_room;        /* at least branches + (steps - 1) branches^2 */
    int32_t node_count;       /* written: the tokens tried, parents before children, best first ... */
    int32_t *node_tokens;     /* [node_room] */
    int32_t *node_parents;    /* [node_room] index of each one's parent, -1: the root */
    float *node_logprobs; /* [node_room] sums of log-probabilities along the paths, over the draft's head */
    int32_t steps_run;    /* written */
    float *seconds;       /* [steps] written: what each step took, the first with the rows; or NULL */
} edge_draft_step;

/* Appends the rows, then tries tokens behind the last one: the first step gives `branches` children of the root, a
 * further one as many behind each of the `branches` best tokens of the step before. Rows of tokens that were tried are
 * dropped. If it fails the cache is as it was. The steps of a block draft are the rows of one block that tell tokens, and
 * no more than there are; where it has a confidence head, that says the chance of the first child of each, and the others
 * share the rest as their logits do. */
EDGE_API edge_status edge_draft_run(edge_draft *draft, edge_draft_step *step);

/* ---- Sampling ------------------------------------------------------------------------------------- */

/* In the order applied: allowed tokens, bias, penalties, temperature, top-k, typical, top-p, min-p, draw. */
typedef struct {
    uint32_t size;            /* sizeof(edge_sampling) */
    float temperature;        /* 0: the most likely token */
    int32_t top_k;            /* 0: off */
    float top_p;              /* 1: off */
    float min_p;              /* 0: off */
    float typical_p;          /* 1: off */
    float repetition_penalty; /* 1: off; divides positive and multiplies negative logits of seen tokens */
    float frequency_penalty;  /* 0: off; subtracted once per occurrence */
    float presence_penalty;   /* 0: off; subtracted once */
    int32_t logprobs;         /* number of top tokens to report, up to EDGE_MAX_LOGPROBS */
} edge_sampling;

typedef struct {
    int32_t token;
    float logprob; /* of the token under the unmodified distribution (temperature 1) */
    int32_t top_tokens[EDGE_MAX_LOGPROBS]; /* most likely first, unmodified distribution */
    float top_logprobs[EDGE_MAX_LOGPROBS];
} edge_sample_result;

/* What one token is drawn from. */
typedef struct {
    uint32_t size; /* sizeof(edge_draw) */
    int32_t vocab_size;
    const float *logits;     /* [vocab_size], left unchanged */
    const uint32_t *allowed; /* bit t % 32 of word t / 32: whether token t may be drawn; NULL: all may */
    const int32_t *history;  /* [history_length] tokens that the penalties count */
    const int32_t *bias_tokens;
    const float *bias_values; /* [bias_count] */
    int32_t history_length, bias_count;
    uint64_t seed, index; /* of the answer, and of the token in it */
    uint64_t choice;      /* which of several answers to the same prompt */
    int32_t want_logprob; /* 0 saves the pass over the vocabulary that logprob needs */
} edge_draw;

/* The random number is the first 53 bits of edge_philox with the key `seed` and the counter (index, choice): a token
 * is the same however many others were drawn before it. */
EDGE_API edge_status edge_sample(const edge_sampling *sampling, const edge_draw *draw,
                                 edge_sample_result *result);

/* Tokens drawn along a step's guesses. */
typedef struct {
    int32_t count; /* of tokens, at least 1 */
    int32_t tokens
        [EDGE_MAX_TREE]; /* the one after the step's first row, then each the one after the guess that is it */
    int32_t rows[EDGE_MAX_TREE]; /* [count - 1] the rows of those guesses */
} edge_drawn;

/* Draws the token after the first row of a step of edge_forward, whose other rows are guesses, and goes on behind the first
 * guess there that is what was drawn, until none is. The step has logits of all its rows, draw->logits, EDGE_MAX_TREE of
 * them at most, and no soft ones. draw->index is of the first token and counts up; there is no history and no `allowed`,
 * which would depend on the path. */
EDGE_API edge_status edge_draw_along(const edge_sampling *sampling, const edge_draw *draw,
                                     const edge_step *step, edge_drawn *drawn);

/* What edge_decode does with a step behind its pass. */
typedef struct {
    uint32_t size; /* sizeof(edge_decoding) */
    const edge_sampling *sampling;
    edge_draw *draw;             /* its logits are written */
    edge_drawn *drawn;           /* written */
    edge_draft *draft;           /* of this model, or NULL */
    edge_draft_step *draft_step; /* its n, tokens and hidden are written; steps_run is 0 if it can't be run */
    int32_t
        *draft_tokens; /* [n of the step] written: the tokens of its rows, which are those that were drawn */
    float *draft_hidden; /* [n of the step][as many as a row of the draft has] written: its hidden states */
} edge_decoding;

/* A pass, as edge_forward runs it, then edge_draw_along for every step, whose cache keeps the rows that stay: the first, and
 * those of the guesses that were right. Where there is a draft, edge_draft_run with these rows; so the step has layer_outputs
 * of the draft's taps, or without taps `hidden`, or layer_outputs of one layer. logits: [rows of all steps][vocab_size],
 * written. A step of which no token could be drawn says why in its status and error and keeps all rows; what a draft can't do
 * leaves the tokens as they are.
 *
 * Drafts may be run while the caller goes on, by a thread of `pool`, which is the model's; NULL: in the call. Before
 * edge_pool_join the drafts, their caches and steps, the model and its weights must be left alone. */
EDGE_API edge_status edge_decode(edge_model *model, edge_step *steps, const edge_decoding *decodings,
                                 int32_t count, float *logits, edge_pool *pool);

/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): counter [4], key [2], out [4]. */
EDGE_API void edge_philox(const uint32_t *counter, const uint32_t *key, uint32_t *out);

#ifdef __cplusplus
}
#endif

#endif
