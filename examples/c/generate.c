/* generate FOLDER COUNT TOKEN...: runs a prompt of token ids through a bundle and prints at most COUNT greedy ids after
 * it, ending with an end token; the speed goes to stderr. FOLDER is what `edge export MODEL --to bundle` wrote. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "edge.h"
#include "edge_bundle.h"

static void fail(const char *sentence) {
    fprintf(stderr, "Error: %s\n", sentence);
    exit(1);
}

static void check(edge_status status) {
    if (status != EDGE_OK) fail(edge_last_error());
}

static int32_t number(const char *text) {
    char *end;
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < 0 || value > INT32_MAX) {
        fail("COUNT and TOKEN are whole numbers of 0 or more.");
    }
    return (int32_t)value;
}

static double now(void) {
    struct timespec time;
    timespec_get(&time, TIME_UTC);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Appends tokens to the sequence in the cache; logits [vocab_size] after the last one. */
static void forward(edge_model *model, edge_cache *cache, const edge_config *config, const int32_t *tokens,
                    int32_t count, float *logits) {
    for (int32_t start = 0; start < count; start += config->max_batch) {
        edge_step step = {.size = sizeof step, .cache = cache, .tokens = &tokens[start]};
        step.n = count - start < config->max_batch ? count - start : config->max_batch;
        step.logits_count = start + step.n == count;
        check(edge_forward(model, &step, 1, logits));
    }
}

/* The likeliest token; other settings of edge_sampling draw one. */
static int32_t sample(const float *logits, int32_t vocab_size) {
    const edge_sampling greedy = {
        .size = sizeof greedy, .temperature = 0, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    const edge_draw draw = {.size = sizeof draw, .logits = logits, .vocab_size = vocab_size};
    edge_sample_result result;
    check(edge_sample(&greedy, &draw, &result));
    return result.token;
}

static int is_end(const edge_bundle *bundle, int32_t token) {
    for (int64_t i = 0; i < bundle->end_token_count; ++i) {
        if (bundle->end_tokens[i] == token) return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 4) fail("usage: generate FOLDER COUNT TOKEN...");
    const int32_t wanted = number(argv[2]), length = argc - 3;
    int32_t *prompt = malloc((size_t)length * sizeof *prompt);
    if (prompt == NULL) fail("There is not enough memory.");
    for (int32_t i = 0; i < length; ++i) prompt[i] = number(argv[3 + i]);

    const edge_bundle *bundle = edge_bundle_open(argv[1]);
    if (bundle == NULL) fail(edge_bundle_error());
    const edge_config config = bundle->config;
    float *logits = malloc((size_t)config.vocab_size * sizeof *logits);
    if (logits == NULL) fail("There is not enough memory.");

    edge_pool *pool;
    edge_model *model;
    edge_cache *cache;
    check(edge_pool_create(0, &pool)); /* as many threads as are good for decoding */
    const edge_parallel parallel = edge_pool_parallel(pool);
    check(edge_model_create(&config, bundle->weights, bundle->weight_count, &parallel, NULL, &model));
    check(edge_cache_create(model, &cache));

    const double start = now();
    forward(model, cache, &config, prompt, length, logits);
    const double decoding = now();
    int32_t made = 0;
    while (made < wanted) {
        const int32_t token = sample(logits, config.vocab_size);
        printf("%d\n", (int)token);
        fflush(stdout);
        ++made;
        if (is_end(bundle, token) || made == wanted) break;
        forward(model, cache, &config, &token, 1, logits);
    }
    fprintf(stderr, "%d tokens of the prompt: %.0f tokens/s\n", (int)length, length / (decoding - start));
    if (made > 1)
        fprintf(stderr, "%d tokens after it: %.0f tokens/s\n", (int)made, (made - 1) / (now() - decoding));

    edge_cache_destroy(cache);
    edge_model_destroy(model);
    edge_pool_destroy(pool);
    edge_bundle_close(bundle);
    free(logits);
    free(prompt);
    return 0;
}
