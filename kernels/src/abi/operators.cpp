// The operators of a layer that work on rows, for host runtimes: the decoder's own steps in the caller's memory.
#include "edge_operators.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "abi/border.h"
#include "abi/checks.h"
#include "decoder/layer.h"
#include "linear/linear.h"
#include "memory/aligned.h"

using edge::fail;
using edge::guarded;
using edge::Kernels;
using edge::Matrix;
using edge::parallel_for;

namespace {

constexpr int64_t tokens_per_piece = 4;

edge_status check_weights(const edge_matrix *in, const char *what, int64_t columns, Matrix *out) {
    if (in == nullptr) return fail(EDGE_INVALID, "%s: the matrix is missing.", what);
    if (const edge_status status = edge::check_matrix(*in, what, out)) return status;
    if (out->kind == EDGE_F32) return fail(EDGE_INVALID, "%s: matrices can't be float32; use float16.", what);
    if (columns != 0 && out->columns != columns) {
        return fail(EDGE_INVALID, "%s: matrices of %lld and %lld columns can't share an input.", what,
                    (long long)columns, (long long)out->columns);
    }
    return EDGE_OK;
}

// The rows of one linear operator as its kernels want them, in the caller's scratch memory.
class Input {
   public:
    Input(const edge_host &host, const Kernels &kernels, int64_t n, edge_activations activations)
        : host_(host), kernels_(kernels), n_(n), input_(activations) {}

    void plan(const Matrix &matrix) {
        input_.plan(kernels_, matrix, n_);
        columns_ = matrix.columns;
        padded_ = matrix.padded;
    }

    // x / rms(x) * norm * scale. `matrices`: all that were planned.
    edge_status take_normed(const float *x, const float *norm, float eps, float scale,
                            std::initializer_list<const Matrix *> matrices) {
        const int64_t stride = edge::row_stride(columns_);
        float *rows, *weight;
        const auto lay_out = [&](uint8_t *memory) {
            uint64_t bytes = 0;
            edge::place(memory, &bytes, n_ * stride, &rows);
            edge::place(memory, &bytes, columns_ == padded_ ? 0 : padded_, &weight);
            return bytes;
        };
        uint8_t *memory;
        const uint64_t own = lay_out(nullptr);
        if (const edge_status status = edge::take_scratch(host_.scratch, own + input_.bytes(), &memory)) {
            return status;
        }
        lay_out(memory);
        input_.place(memory + own);
        if (columns_ != padded_) copy_padded(norm, weight);
        const float *const weights = columns_ == padded_ ? norm : weight;
        input_.prepare(*host_.parallel, kernels_, rows, stride, n_, matrices, [&](int64_t token) {
            float *row = rows + token * stride;
            const float *from = x + token * columns_;
            if (columns_ != padded_) {
                copy_padded(from, row);
                from = row;
            }
            kernels_.rms_norm(from, weights, eps, scale, columns_, padded_, row);
        });
        return EDGE_OK;
    }

    // The rows as they are. `before(token)` runs on the thread that prepares the token's row.
    template <class Before>
    edge_status take(const float *x, const Matrix &matrix, const Before &before) {
        const int64_t copied = columns_ == padded_ ? 0 : n_ * padded_;
        float *rows;
        uint64_t own = 0;
        edge::place(nullptr, &own, copied, &rows);
        uint8_t *memory;
        if (const edge_status status = edge::take_scratch(host_.scratch, own + input_.bytes(), &memory)) {
            return status;
        }
        rows = reinterpret_cast<float *>(memory);
        input_.place(memory + own);
        input_.prepare(*host_.parallel, kernels_, copied ? rows : x, padded_, n_, {&matrix},
                       [&](int64_t token) {
                           if (copied) copy_padded(x + token * columns_, rows + token * padded_);
                           before(token);
                       });
        return EDGE_OK;
    }

    const edge::LinearInput &prepared() const { return input_; }

   private:
    void copy_padded(const float *from, float *to) const {
        std::memcpy(to, from, size_t(columns_) * sizeof(float));
        std::fill(to + columns_, to + padded_, 0.0f);
    }

    const edge_host &host_;
    const Kernels &kernels_;
    const int64_t n_;
    edge::LinearInput input_;
    int64_t columns_ = 0, padded_ = 0;
};

}  // namespace

edge_status edge_embedding(const edge_host *host, const edge_matrix *w, const int64_t *tokens, int64_t n,
                           float scale, float *out) {
    return guarded([&]() -> edge_status {
        const Kernels *kernels;
        if (const edge_status status = edge::check_host(host, n, "edge_embedding", &kernels)) return status;
        if (!tokens || !out) return fail(EDGE_INVALID, "edge_embedding: an argument is missing.");
        Matrix matrix;
        if (const edge_status status = check_weights(w, "The embedding", 0, &matrix)) return status;
        for (int64_t i = 0; i < n; ++i) {
            if (tokens[i] < 0 || tokens[i] >= matrix.rows) {
                return fail(EDGE_VOCABULARY, "Token id %lld at place %lld is outside the vocabulary of %lld.",
                            (long long)tokens[i], (long long)i, (long long)matrix.rows);
            }
        }
        parallel_for(*host->parallel, n, tokens_per_piece, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t token = begin; token < end; ++token) {
                edge::embed_token(matrix, tokens[token], scale, out + token * matrix.columns);
            }
        });
        return EDGE_OK;
    });
}

edge_status edge_rope_table(const int64_t *positions, int64_t n, const float *inverse_frequency, int64_t half,
                            float scale, float *out) {
    if (!positions || !inverse_frequency || !out || n <= 0 || n > edge::most_tokens || half <= 0 ||
        half > edge::max_head_dim / 2) {
        return fail(EDGE_INVALID, "edge_rope_table: an argument is missing or out of range.");
    }
    for (int64_t i = 0; i < n; ++i) {
        edge::rope_row(float(positions[i]), inverse_frequency, half, scale, out + i * 2 * half);
    }
    return EDGE_OK;
}

edge_status edge_rms_norm_linear(const edge_host *host, const float *x, int64_t n, const float *norm,
                                 float eps, float scale, const edge_matrix *w, int32_t count,
                                 int32_t activations, float *out) {
    return guarded([&]() -> edge_status {
        const char *const what = "edge_rms_norm_linear";
        const Kernels *kernels;
        if (const edge_status status = edge::check_host(host, n, what, &kernels)) return status;
        if (const edge_status status = edge::check_activations(activations)) return status;
        if (!x || !norm || !w || !out) return fail(EDGE_INVALID, "%s: an argument is missing.", what);
        if (count < 1 || count > EDGE_MAX_MATRICES) {
            return fail(EDGE_INVALID, "%s takes 1 to %d matrices, got %d.", what, EDGE_MAX_MATRICES, count);
        }
        Matrix matrices[EDGE_MAX_MATRICES];
        const Matrix *all[EDGE_MAX_MATRICES];
        std::fill_n(all, EDGE_MAX_MATRICES, matrices);
        edge::LinearJob jobs[EDGE_MAX_MATRICES];
        Input input(*host, *kernels, n, edge_activations(activations));
        int64_t stride = 0;
        for (int32_t i = 0; i < count; ++i) {
            const int64_t columns = i == 0 ? 0 : matrices[0].columns;
            if (const edge_status status = check_weights(&w[i], what, columns, &matrices[i])) return status;
            input.plan(matrices[i]);
            all[i] = &matrices[i];
            jobs[i] = {all[i], out + stride, 0};
            stride += matrices[i].rows;
        }
        for (edge::LinearJob &job : jobs) job.stride = stride;
        static_assert(EDGE_MAX_MATRICES == 8);
        if (const edge_status status = input.take_normed(
                x, norm, eps, scale, {all[0], all[1], all[2], all[3], all[4], all[5], all[6], all[7]})) {
            return status;
        }
        run_linear(*host->parallel, *kernels, input.prepared(), n, jobs, count);
        return EDGE_OK;
    });
}

edge_status edge_rms_norm_swiglu(const edge_host *host, const float *x, int64_t n, const float *norm,
                                 float eps, const edge_matrix *gate, const edge_matrix *up,
                                 int32_t activations, float *out) {
    return guarded([&]() -> edge_status {
        const char *const what = "edge_rms_norm_swiglu";
        const Kernels *kernels;
        if (const edge_status status = edge::check_host(host, n, what, &kernels)) return status;
        if (const edge_status status = edge::check_activations(activations)) return status;
        if (!x || !norm || !out) return fail(EDGE_INVALID, "%s: an argument is missing.", what);
        Matrix gate_matrix, up_matrix;
        if (const edge_status status = check_weights(gate, what, 0, &gate_matrix)) return status;
        if (const edge_status status = check_weights(up, what, gate_matrix.columns, &up_matrix)) {
            return status;
        }
        if (gate_matrix.rows != up_matrix.rows) {
            return fail(EDGE_INVALID, "%s: gate has %lld rows, but up has %lld.", what,
                        (long long)gate_matrix.rows, (long long)up_matrix.rows);
        }
        Input input(*host, *kernels, n, edge_activations(activations));
        input.plan(gate_matrix);
        input.plan(up_matrix);
        if (const edge_status status = input.take_normed(x, norm, eps, 1.0f, {&gate_matrix, &up_matrix})) {
            return status;
        }
        run_swiglu(*host->parallel, *kernels, input.prepared(), n, gate_matrix, up_matrix, out,
                   gate_matrix.rows, nullptr);
        return EDGE_OK;
    });
}

edge_status edge_linear_residual(const edge_host *host, const float *x, int64_t n, const edge_matrix *w,
                                 const float *residual, float scale, int32_t activations, float *out) {
    return guarded([&]() -> edge_status {
        const char *const what = "edge_linear_residual";
        const Kernels *kernels;
        if (const edge_status status = edge::check_host(host, n, what, &kernels)) return status;
        if (const edge_status status = edge::check_activations(activations)) return status;
        if (!x || !out) return fail(EDGE_INVALID, "%s: an argument is missing.", what);
        if (residual == nullptr && scale != 1.0f) {
            return fail(EDGE_INVALID, "%s: a scale of %g needs a residual to add the product to.", what,
                        double(scale));
        }
        Matrix matrix;
        if (const edge_status status = check_weights(w, what, 0, &matrix)) return status;
        Input input(*host, *kernels, n, edge_activations(activations));
        input.plan(matrix);
        const auto copy_residual = [&](int64_t token) {
            if (residual == nullptr || residual == out) return;
            std::memcpy(out + token * matrix.rows, residual + token * matrix.rows,
                        size_t(matrix.rows) * sizeof(float));
        };
        if (const edge_status status = input.take(x, matrix, copy_residual)) return status;
        const edge::LinearJob job{&matrix, out, matrix.rows, residual != nullptr, scale};
        run_linear(*host->parallel, *kernels, input.prepared(), n, &job, 1);
        return EDGE_OK;
    });
}
