/* Opens the folder that `edge export MODEL --to bundle` wrote, for programs in C. Compile edge_bundle.cpp, bundle.cpp and
 * json.cpp into the program (C++17) and link libedge. */
#ifndef EDGE_BUNDLE_H
#define EDGE_BUNDLE_H

#include "edge.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    edge_config
        config; /* ready for edge_model_create: the context of the export, batches of up to 256 tokens, int8
                           activations, a float16 KV cache; a copy of it may be changed */
    const edge_weight *weights;
    int64_t weight_count;
    const int32_t *end_tokens; /* an answer ends with any of them */
    int64_t end_token_count;
} edge_bundle;

/* The bundle with its weights in memory; must outlive the model. Sizes and layouts are checked, checksums are not. NULL
 * where it can't be opened. */
const edge_bundle *edge_bundle_open(const char *folder);
/* One sentence about the last edge_bundle_open of this thread that gave NULL. */
const char *edge_bundle_error(void);
void edge_bundle_close(const edge_bundle *bundle);

#ifdef __cplusplus
}
#endif

#endif
