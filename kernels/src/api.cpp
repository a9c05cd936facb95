// The C border: checks every argument and lets no exception out.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <vector>

#include "decoder.h"
#include "error.h"
#include "kernels.h"
#include "linear.h"
#include "matrix.h"

using edge::fail;
using edge::Kernels;
using edge::Matrix;

namespace {

template <class Body>
edge_status guarded(const Body &body) {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return fail(EDGE_NO_MEMORY, "Out of memory; lower the context or the batch size.");
    } catch (const std::exception &error) { return fail(EDGE_INVALID, "%s.", error.what()); }
}

edge_status pick_kernels(const char *tier, const Kernels **kernels) {
    *kernels = edge::find_kernels(tier);
    if (*kernels != nullptr) return EDGE_OK;
    return fail(EDGE_UNSUPPORTED, "This CPU has no kernels called '%s'; it has: %s.", tier ? tier : "",
                edge_cpu_tiers());
}

edge_status check_config(const edge_config &c) {
    struct Field {
        const char *name;
        int64_t value;
    };
    const Field positive[] = {{"vocab_size", c.vocab_size},
                              {"hidden_size", c.hidden_size},
                              {"intermediate_size", c.intermediate_size},
                              {"layers", c.layers},
                              {"heads", c.heads},
                              {"kv_heads", c.kv_heads},
                              {"head_dim", c.head_dim},
                              {"context", c.context},
                              {"max_batch", c.max_batch}};
    constexpr int64_t limit = 1 << 24;
    for (const Field &field : positive) {
        if (field.value <= 0 || field.value > limit) {
            return fail(EDGE_INVALID, "%s is %lld; it must be between 1 and %lld.", field.name,
                        (long long)field.value, (long long)limit);
        }
    }
    if (c.heads % c.kv_heads != 0) {
        return fail(EDGE_INVALID, "heads (%d) must be a multiple of kv_heads (%d).", c.heads, c.kv_heads);
    }
    constexpr int64_t most_layers = 4096, most_columns = 1 << 24;
    if (c.layers > most_layers || int64_t(c.heads) * c.head_dim > most_columns) {
        return fail(EDGE_INVALID, "%d layers of %d heads of %d are beyond what is possible.", c.layers,
                    c.heads, c.head_dim);
    }
    if (c.head_dim % 16 != 0)
        return fail(EDGE_INVALID, "head_dim is %d; it must be a multiple of 16.", c.head_dim);
    if (c.activations != EDGE_ACTIVATIONS_INT8 && c.activations != EDGE_ACTIVATIONS_F32) {
        return fail(EDGE_INVALID, "Unknown kind of activations %d.", c.activations);
    }
    if (c.kv_type != EDGE_KV_F16 && c.kv_type != EDGE_KV_F32)
        return fail(EDGE_INVALID, "Unknown KV type %d.", c.kv_type);
    if (c.inverse_frequency == nullptr) return fail(EDGE_INVALID, "inverse_frequency is NULL.");
    for (const float value :
         {c.rms_norm_eps, c.embedding_scale, c.residual_scale, c.logit_scale, c.rope_scale}) {
        if (!std::isfinite(value))
            return fail(EDGE_INVALID, "A scale or epsilon of the model is not finite.");
    }
    if (c.rms_norm_eps <= 0.0f)
        return fail(EDGE_INVALID, "rms_norm_eps must be positive, got %g.", double(c.rms_norm_eps));
    return EDGE_OK;
}

constexpr int64_t max_tokens = 1 << 24, max_columns = 1 << 30;  // far from overflow in sizes

edge_status take_scratch(const edge_scratch *scratch, uint64_t bytes, uint8_t **memory) {
    if (!scratch || !scratch->allocate)
        return fail(EDGE_INVALID, "The operator needs scratch memory, got none.");
    *memory = static_cast<uint8_t *>(scratch->allocate(scratch->context, bytes > 0 ? bytes : 1));
    if (*memory == nullptr) {
        return fail(EDGE_NO_MEMORY, "The caller has no %llu bytes of scratch memory.",
                    (unsigned long long)bytes);
    }
    return EDGE_OK;
}

bool parallel_is_usable(const edge_parallel *parallel) {
    return parallel != nullptr && parallel->workers >= 1 &&
           (parallel->workers == 1 || parallel->run != nullptr);
}

}  // namespace

int32_t edge_abi_version(void) { return EDGE_ABI_VERSION; }

// ---- Operators --------------------------------------------------------------------------------------

edge_status edge_linear(const edge_parallel *parallel, const edge_scratch *scratch, const char *tier,
                        const edge_matrix *w, int32_t activations, const float *x, int64_t n, float *y) {
    return guarded([&]() -> edge_status {
        if (!parallel_is_usable(parallel) || !w || !x || !y || n <= 0 || n > max_tokens) {
            return fail(EDGE_INVALID, "edge_linear: an argument is missing or out of range.");
        }
        if (activations != EDGE_ACTIVATIONS_INT8 && activations != EDGE_ACTIVATIONS_F32) {
            return fail(EDGE_INVALID, "Unknown kind of activations %d.", activations);
        }
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
        if (const edge_status status = take_scratch(scratch, input.bytes() + uint64_t(copied), &memory))
            return status;
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

const char *edge_linear_path(const edge_matrix *w, int32_t activations) {
    Matrix matrix;
    if (!w || (activations != EDGE_ACTIVATIONS_INT8 && activations != EDGE_ACTIVATIONS_F32)) {
        fail(EDGE_INVALID, "edge_linear_path: the matrix is missing, or the activations are unknown.");
        return nullptr;
    }
    if (edge::check_matrix(*w, "The matrix", &matrix)) return nullptr;
    return edge::linear_path(matrix, edge_activations(activations));
}

edge_status edge_dequantize_row(const edge_matrix *w, int64_t row, float *out) {
    return guarded([&]() -> edge_status {
        if (!w || !out) return fail(EDGE_INVALID, "edge_dequantize_row: an argument is missing.");
        Matrix matrix;
        if (const edge_status status = edge::check_matrix(*w, "The matrix", &matrix)) return status;
        if (row < 0 || row >= matrix.rows)
            return fail(EDGE_INVALID, "Row %lld does not exist.", (long long)row);
        edge::dequantize_row(matrix, row, out);
        return EDGE_OK;
    });
}

edge_status edge_rms_norm(const edge_parallel *parallel, const edge_scratch *scratch, const char *tier,
                          const float *x, const float *weight, float eps, float scale, int64_t n,
                          int64_t size, float *out) {
    return guarded([&]() -> edge_status {
        if (!parallel_is_usable(parallel) || !x || !weight || !out || n <= 0 || size <= 0 ||
            size > max_columns) {
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
        if (const edge_status status = check_config(*config)) return status;
        const Kernels *kernels;
        if (const edge_status status = pick_kernels(tier, &kernels)) return status;
        auto loaded = std::make_unique<edge_model>(*config, *parallel, *kernels);
        if (const edge_status status = loaded->load(weights, count)) return status;
        *model = loaded.release();
        return EDGE_OK;
    });
}

void edge_model_destroy(edge_model *model) { delete model; }

const char *edge_model_tier(const edge_model *model) { return model ? model->kernels.name : ""; }

uint64_t edge_model_workspace_bytes(const edge_model *model) { return model ? model->workspace_bytes() : 0; }

edge_status edge_model_observe(edge_model *model, edge_observer observer, void *context) {
    if (!model) return fail(EDGE_INVALID, "edge_model_observe: the model is missing.");
    model->observer = {observer, context};
    return EDGE_OK;
}

edge_status edge_cache_create(const edge_model *model, edge_cache **cache) {
    return guarded([&]() -> edge_status {
        if (!model || !cache) return fail(EDGE_INVALID, "edge_cache_create: an argument is missing.");
        auto fresh = std::make_unique<edge_cache>(model->cache_shape());
        if (const edge_status status = fresh->reserve()) return status;
        *cache = fresh.release();
        return EDGE_OK;
    });
}

edge_status edge_forward(edge_model *model, edge_cache *cache, const edge_batch *batch) {
    return guarded([&]() -> edge_status {
        if (!model || !cache || !batch) return fail(EDGE_INVALID, "edge_forward: an argument is missing.");
        if (batch->size != sizeof(edge_batch)) {
            return fail(EDGE_INVALID,
                        "edge_batch has another size here: the library and its caller differ in version.");
        }
        return model->forward(*cache, *batch);
    });
}
