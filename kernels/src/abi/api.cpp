// The C border: checks every argument and lets no exception out.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "abi/border.h"
#include "abi/checks.h"
#include "abi/error.h"
#include "attention/attention.h"
#include "attention/sparse_attention.h"
#include "decoder/decoder.h"
#include "linear/linear.h"
#include "linear/matrix.h"
#include "memory/aligned.h"
#include "tiers/kernels.h"

using edge::fail;
using edge::Kernels;
using edge::Matrix;

using edge::guarded;
using edge::parallel_is_usable;
using edge::pick_kernels;
using edge::take_scratch;

int32_t edge_abi_version(void) { return EDGE_ABI_VERSION; }

// ---- Operators --------------------------------------------------------------------------------------

edge_status edge_linear(const edge_parallel *parallel, const edge_scratch *scratch, const char *tier,
                        const edge_matrix *w, int32_t activations, const float *x, int64_t n, float *y) {
    return guarded([&]() -> edge_status {
        if (!parallel_is_usable(parallel) || !w || !x || !y || n <= 0 || n > edge::most_tokens) {
            return fail(EDGE_INVALID, "edge_linear: an argument is missing or out of range.");
        }
        if (const edge_status status = edge::check_activations(activations)) return status;
        const Kernels *kernels;
        if (const edge_status status = pick_kernels(tier, &kernels)) return status;
        Matrix matrix;
        if (const edge_status status = edge::check_matrix(*w, "The matrix", &matrix)) return status;
        if (matrix.kind == EDGE_F32) return fail(EDGE_INVALID, "Matrices can't be float32; use float16.");
        edge::LinearInput input{edge_activations(activations)};
        input.plan(*kernels, matrix, n);
        // Rows that are no multiple of 32 columns long are copied, padded with zeros.
        const int64_t copied =
            matrix.columns == matrix.padded ? 0 : n * matrix.padded * int64_t(sizeof(float));
        uint8_t *memory;
        if (const edge_status status = take_scratch(scratch, input.bytes() + uint64_t(copied), &memory)) {
            return status;
        }
        input.place(memory);
        float *rows = reinterpret_cast<float *>(memory + input.bytes());
        const auto copy_row = [&](int64_t token) {
            if (copied == 0) return;
            float *row = rows + token * matrix.padded;
            std::memcpy(row, x + token * matrix.columns, size_t(matrix.columns) * sizeof(float));
            std::fill(row + matrix.columns, row + matrix.padded, 0.0f);
        };
        input.prepare(*parallel, *kernels, copied ? rows : x, matrix.padded, n, {&matrix}, copy_row);
        const edge::LinearJob job{&matrix, y, matrix.rows};
        run_linear(*parallel, *kernels, input, n, &job, 1);
        return EDGE_OK;
    });
}

const char *edge_linear_kernel(const edge_matrix *w, int32_t activations) {
    if (!w) {
        fail(EDGE_INVALID, "edge_linear_kernel: the matrix is missing.");
        return nullptr;
    }
    Matrix matrix;
    if (edge::check_activations(activations) || edge::check_matrix(*w, "The matrix", &matrix)) return nullptr;
    return edge::linear_kernel(matrix, edge_activations(activations));
}

edge_status edge_dequantize_row(const edge_matrix *w, int64_t row, float *out) {
    return guarded([&]() -> edge_status {
        if (!w || !out) return fail(EDGE_INVALID, "edge_dequantize_row: an argument is missing.");
        Matrix matrix;
        if (const edge_status status = edge::check_matrix(*w, "The matrix", &matrix)) return status;
        if (row < 0 || row >= matrix.rows) {
            return fail(EDGE_INVALID, "Row %lld does not exist.", (long long)row);
        }
        edge::dequantize_row(matrix, row, out);
        return EDGE_OK;
    });
}

edge_status edge_rms_norm(const edge_parallel *parallel, const edge_scratch *scratch, const char *tier,
                          const float *x, const float *weight, float eps, float scale, int64_t n,
                          int64_t size, float *out) {
    return guarded([&]() -> edge_status {
        if (!parallel_is_usable(parallel) || !x || !weight || !out || n <= 0 || n > edge::most_tokens ||
            size <= 0 || size > edge::most_columns) {
            return fail(EDGE_INVALID, "edge_rms_norm: an argument is missing or out of range.");
        }
        const Kernels *kernels;
        if (const edge_status status = pick_kernels(tier, &kernels)) return status;
        // Kernels work on whole vectors: one padded weight, and a padded row in and out for each thread.
        const int64_t padded = edge::round_up(size, 16), buffers = 1 + 2 * int64_t(parallel->workers);
        uint8_t *memory;
        const uint64_t bytes = uint64_t(buffers * padded) * sizeof(float);
        if (const edge_status status = take_scratch(scratch, bytes, &memory)) return status;
        float *weights = reinterpret_cast<float *>(memory);
        std::fill(weights, weights + buffers * padded, 0.0f);
        std::memcpy(weights, weight, size_t(size) * sizeof(float));
        constexpr int64_t rows_per_piece = 8;
        edge::parallel_for(*parallel, n, rows_per_piece, [&](int64_t begin, int64_t end, int32_t worker) {
            float *row = weights + (1 + 2 * worker) * padded, *result = row + padded;
            for (int64_t i = begin; i < end; ++i) {
                std::memcpy(row, x + i * size, size_t(size) * sizeof(float));
                kernels->rms_norm(row, weights, eps, scale, size, padded, result);
                std::memcpy(out + i * size, result, size_t(size) * sizeof(float));
            }
        });
        return EDGE_OK;
    });
}

edge_status edge_attention(const edge_parallel *parallel, const char *tier, int32_t kv_type, int32_t heads,
                           int32_t kv_heads, int32_t head_dim, const edge_sparse *sparse,
                           const float *queries, const float *keys, const float *values, int64_t n,
                           int64_t past, const uint64_t *tree, float *out, int32_t *selected) {
    return guarded([&]() -> edge_status {
        if (!parallel_is_usable(parallel) || !queries || !keys || !values || !out || n <= 0 || past < 0 ||
            past > edge::most_tokens || n > edge::most_tokens) {
            return fail(EDGE_INVALID, "edge_attention: an argument is missing or out of range.");
        }
        if (const edge_status status = edge::check_heads(heads, kv_heads, head_dim, kv_type)) return status;
        if (tree != nullptr) {
            if (const edge_status status = edge::check_tree(tree, n)) return status;
        }
        edge_sparse constants{};
        if (sparse != nullptr && sparse->enabled) {
            if (const edge_status status = edge::check_sparse(*sparse, heads / kv_heads)) return status;
            constants = *sparse;
        }
        const Kernels *kernels;
        if (const edge_status status = pick_kernels(tier, &kernels)) return status;
        edge_cache cache({1, kv_heads, head_dim, past + n, edge_kv_type(kv_type)}, constants);
        if (const edge_status status = cache.make_room(0, past + n)) return status;
        for (int64_t position = 0; position < past + n; ++position) {
            for (int64_t head = 0; head < kv_heads; ++head) {
                const int64_t at = (position * kv_heads + head) * head_dim;
                cache.store(*kernels, 0, head, position, keys + at, values + at);
            }
        }
        const int64_t stride = int64_t(heads) * head_dim;
        edge::Attention attention(cache.shape, heads, n, parallel->workers);
        edge::AlignedMemory memory, sparse_memory;
        memory.reset(attention.bytes());
        attention.place(memory.data());
        const edge::Sequence sequence{&cache, 0, n, past, tree};
        if (!constants.enabled) {
            attention.run(*parallel, *kernels, 0, queries, out, stride, &sequence, 1);
            return EDGE_OK;
        }
        edge::SparseAttention operation(cache.shape, constants, heads, n, parallel->workers);
        sparse_memory.reset(operation.bytes());
        operation.place(sparse_memory.data());
        operation.run(*parallel, *kernels, attention, 0, queries, out, stride, &sequence, 1);
        if (selected != nullptr) {
            operation.copy_selections(n, constants.topk + constants.window_size / constants.block_size,
                                      selected);
        }
        return EDGE_OK;
    });
}

// ---- The decoder ------------------------------------------------------------------------------------

edge_status edge_model_create(const edge_config *config, const edge_weight *weights, int64_t count,
                              const edge_parallel *parallel, const char *tier, edge_model **model) {
    return guarded([&]() -> edge_status {
        if (!config || config->size != sizeof(edge_config)) {
            return fail(EDGE_INVALID,
                        "edge_config has another size here: the library and its caller differ in version.");
        }
        if (!weights || count <= 0 || !parallel_is_usable(parallel) || !model) {
            return fail(EDGE_INVALID, "edge_model_create: an argument is missing.");
        }
        if (const edge_status status = edge::check_config(*config)) return status;
        const Kernels *kernels;
        if (const edge_status status = pick_kernels(tier, &kernels)) return status;
        auto loaded = std::make_unique<edge_model>(*config, *parallel, *kernels);
        if (const edge_status status = loaded->load(weights, count)) return status;
        *model = loaded.release();
        return EDGE_OK;
    });
}

void edge_model_destroy(edge_model *model) { delete model; }

edge_status edge_model_replace(edge_model *model, const edge_weight *weights, int64_t count) {
    return guarded([&]() -> edge_status {
        if (!model || !weights || count <= 0) {
            return fail(EDGE_INVALID, "edge_model_replace: an argument is missing.");
        }
        if (const edge_status status = edge::refuse_in_observer("edge_model_replace")) return status;
        return model->replace(weights, count);
    });
}

const char *edge_model_tier(const edge_model *model) { return model ? model->kernels.name : ""; }

uint64_t edge_model_workspace_bytes(const edge_model *model) { return model ? model->workspace_bytes() : 0; }

edge_status edge_model_observe(edge_model *model, edge_observer observer, void *context) {
    if (!model) return fail(EDGE_INVALID, "edge_model_observe: the model is missing.");
    if (const edge_status status = edge::refuse_in_observer("edge_model_observe")) return status;
    model->observer = {observer, context, edge_activations(model->config.activations)};
    return EDGE_OK;
}

edge_status edge_cache_create(const edge_model *model, edge_cache **cache) {
    return guarded([&]() -> edge_status {
        if (!model || !cache) return fail(EDGE_INVALID, "edge_cache_create: an argument is missing.");
        if (!model->pools.prepare()) {
            return fail(EDGE_NO_MEMORY, "There is no address space for a KV cache; lower --context.");
        }
        *cache = new edge_cache(model->cache_shape(), model->config.sparse, model->pools);
        return EDGE_OK;
    });
}

uint64_t edge_model_cache_bytes(const edge_model *model) {
    if (model == nullptr) return 0;
    const edge::CachePools &pools = model->pools;
    return pools.rows->used_bytes() + (pools.summaries ? pools.summaries->used_bytes() : 0);
}

edge_status edge_forward(edge_model *model, edge_step *steps, int32_t count, float *logits) {
    return guarded([&]() -> edge_status {
        if (!model || !steps || count <= 0) {
            return fail(EDGE_INVALID, "edge_forward: an argument is missing.");
        }
        for (int32_t i = 0; i < count; ++i) {
            if (steps[i].size != sizeof(edge_step)) {
                return fail(EDGE_INVALID,
                            "edge_step has another size here: the library and its caller differ in version.");
            }
            steps[i].status = EDGE_OK;
            steps[i].error[0] = 0;
        }
        if (const edge_status status = edge::refuse_in_observer("edge_forward")) return status;
        return model->forward(steps, count, logits);
    });
}
