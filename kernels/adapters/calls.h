// What the adapters to host runtimes share: the operators over shaped tensors, whose shapes are checked before a call.
//
// An adapter turns its runtime's tensors into `Tensor`s and gives `Out`, which makes the result: called with the
// shape of the leading dimensions' tensor and the last dimensions, it returns where the floats go.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>

#include "edge_operators.h"

namespace edge_adapter {

// Why an operator was not run, in one sentence.
struct Refusal {
    edge_status status;
    char text[512];
};

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void refuse(const char *format, ...) {
    Refusal refusal{EDGE_INVALID, {}};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(refusal.text, sizeof refusal.text, format, arguments);
    va_end(arguments);
    throw refusal;
}

inline void check(edge_status status) {
    if (status == EDGE_OK) return;
    Refusal refusal{status, {}};
    snprintf(refusal.text, sizeof refusal.text, "%s", edge_last_error());
    throw refusal;
}

struct Tensor {
    static constexpr int most_dims = 8;

    void *data = nullptr;
    int rank = 0;
    int64_t dims[most_dims] = {};
    bool given = false;

    int64_t count() const {
        int64_t product = 1;
        for (int i = 0; i < rank; ++i) product *= dims[i];
        return product;
    }
    // Rows of `columns` elements.
    int64_t rows(const char *name, int64_t columns) const {
        if (rank < 1 || columns <= 0 || dims[rank - 1] != columns) {
            refuse("%s has rows of %lld, but %lld are needed.", name,
                   (long long)(rank < 1 ? 0 : dims[rank - 1]), (long long)columns);
        }
        return count() / columns;
    }
    void holds(const char *name, int64_t wanted) const {
        if (count() != wanted) {
            refuse("%s has %lld elements, but %lld are needed.", name, (long long)count(), (long long)wanted);
        }
    }
    template <class T>
    T *as() const {
        return static_cast<T *>(data);
    }
};

struct Numbers {
    const int64_t *values;
    int64_t count;
};

// A matrix in five numbers: kind, group, minimum, rows, columns.
constexpr int64_t matrix_numbers = 5;

inline edge_matrix matrix_of(const Numbers &numbers, int64_t index, const Tensor &weight) {
    if (numbers.count < matrix_numbers * (index + 1)) {
        refuse("Matrix %lld lacks its %lld numbers.", (long long)index, (long long)matrix_numbers);
    }
    const int64_t *const v = numbers.values + matrix_numbers * index;
    constexpr int64_t most = 1 << 30;
    for (int i = 0; i < matrix_numbers; ++i) {
        if (v[i] < 0 || v[i] > most) refuse("A matrix can't have the number %lld.", (long long)v[i]);
    }
    return {int32_t(v[0]), int32_t(v[1]), int32_t(v[2]), 0,
            v[3],          v[4],          weight.data,   uint64_t(weight.count())};
}

inline int32_t activations_of(int64_t number) {
    if (number < EDGE_ACTIVATIONS_INT8 || number > EDGE_ACTIVATIONS_INT16) {
        refuse("Unknown kind of activations %lld.", (long long)number);
    }
    return int32_t(number);
}

// The numbers that describe a cache.
struct CacheNumbers {
    int64_t heads, kv_heads, head_dim, kv_type, capacity;
    Numbers sparse;  // none, or 8

    edge_layer_cache over(const Tensor &memory) const {
        for (const int64_t value : {heads, kv_heads, head_dim, kv_type}) {
            if (value < 0 || value > 1 << 24) refuse("A cache can't have the number %lld.", (long long)value);
        }
        edge_layer_cache cache{};
        cache.kv_type = int32_t(kv_type);
        cache.heads = int32_t(heads);
        cache.kv_heads = int32_t(kv_heads);
        cache.head_dim = int32_t(head_dim);
        cache.capacity = capacity;
        cache.memory = memory.data;
        cache.bytes = uint64_t(memory.count());
        if (sparse.count == 0) return cache;
        if (sparse.count != 8) {
            refuse("Sparse attention has 8 numbers or none, not %lld.", (long long)sparse.count);
        }
        for (int i = 0; i < 8; ++i) {
            if (sparse.values[i] < -1 || sparse.values[i] > 1 << 24) {
                refuse("Sparse attention can't have the number %lld.", (long long)sparse.values[i]);
            }
        }
        const auto at = [&](int i) { return int32_t(sparse.values[i]); };
        cache.sparse = {1, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)};
        return cache;
    }
};

inline int64_t start_of(const Tensor &start) {
    start.holds("start", 1);
    return *start.as<int64_t>();
}

inline const uint64_t *tree_of(const Tensor &tree, int64_t n) {
    if (!tree.given || tree.count() == 0) return nullptr;
    tree.holds("tree", n);
    return tree.as<uint64_t>();
}

template <class Out>
void embedding(const edge_host &host, const Tensor &tokens, const Tensor &weight, const Numbers &matrix,
               float scale, const Out &out) {
    const edge_matrix w = matrix_of(matrix, 0, weight);
    float *result = out(tokens, tokens.rank, {w.columns});
    if (tokens.count() > 0) {
        check(edge_embedding(&host, &w, tokens.as<int64_t>(), tokens.count(), scale, result));
    }
}

template <class Out>
void rope_table(const Tensor &positions, const Tensor &inverse_frequency, float scale, const Out &out) {
    const int64_t half = inverse_frequency.count();
    float *result = out(positions, positions.rank, {2, half});
    check(edge_rope_table(positions.as<int64_t>(), positions.count(), inverse_frequency.as<float>(), half,
                          scale, result));
}

template <class Out>
void rms_norm(const edge_host &host, const Tensor &x, const Tensor &norm, float eps, float scale,
              const Out &out) {
    const int64_t n = x.rows("x", norm.count());
    float *result = out(x, x.rank - 1, {norm.count()});
    check(edge_rms_norm(host.parallel, host.scratch, host.tier, x.as<float>(), norm.as<float>(), eps, scale,
                        n, norm.count(), result));
}

template <class Out>
void rms_norm_linear(const edge_host &host, const Tensor &x, const Tensor &norm, const Tensor *weights,
                     int64_t count, const Numbers &matrices, float eps, float scale, int64_t activations,
                     const Out &out) {
    if (count < 1 || count > EDGE_MAX_MATRICES || matrices.count != matrix_numbers * count) {
        refuse("rms_norm_linear takes 1 to %d matrices of %lld numbers each.", EDGE_MAX_MATRICES,
               (long long)matrix_numbers);
    }
    edge_matrix w[EDGE_MAX_MATRICES];
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += (w[i] = matrix_of(matrices, i, weights[i])).rows;
    const int64_t n = x.rows("x", w[0].columns);
    norm.holds("norm", w[0].columns);
    check(edge_rms_norm_linear(&host, x.as<float>(), n, norm.as<float>(), eps, scale, w, int32_t(count),
                               activations_of(activations), out(x, x.rank - 1, {total})));
}

template <class Out>
void rms_norm_swiglu(const edge_host &host, const Tensor &x, const Tensor &norm, const Tensor &gate,
                     const Tensor &up, const Numbers &matrices, float eps, int64_t activations,
                     const Out &out) {
    const edge_matrix first = matrix_of(matrices, 0, gate), second = matrix_of(matrices, 1, up);
    const int64_t n = x.rows("x", first.columns);
    norm.holds("norm", first.columns);
    check(edge_rms_norm_swiglu(&host, x.as<float>(), n, norm.as<float>(), eps, &first, &second,
                               activations_of(activations), out(x, x.rank - 1, {first.rows})));
}

template <class Out>
void linear(const edge_host &host, const Tensor &x, const Tensor &weight, const Numbers &matrix,
            const Tensor &residual, float scale, int64_t activations, const Out &out) {
    const edge_matrix w = matrix_of(matrix, 0, weight);
    const int64_t n = x.rows("x", w.columns);
    if (residual.given) residual.holds("residual", n * w.rows);
    check(edge_linear_residual(&host, x.as<float>(), n, &w, residual.given ? residual.as<float>() : nullptr,
                               scale, activations_of(activations), out(x, x.rank - 1, {w.rows})));
}

template <class Out>
void kv_append(const edge_host &host, const Tensor &qkv, const Tensor &rope, const Tensor &start,
               const Tensor &cache, const Tensor &tree, const CacheNumbers &numbers, const Out &out) {
    const edge_layer_cache layer = numbers.over(cache);
    const int64_t n = qkv.rows("qkv", (numbers.heads + 2 * numbers.kv_heads) * numbers.head_dim);
    rope.holds("rope", n * numbers.head_dim);
    check(edge_kv_append(&host, &layer, qkv.as<float>(), rope.as<float>(), n, start_of(start),
                         tree_of(tree, n), out(qkv, qkv.rank - 1, {numbers.heads * numbers.head_dim})));
}

template <class Out>
void paged_attention(const edge_host &host, const Tensor &queries, const Tensor &start, const Tensor &cache,
                     const Tensor &tree, const CacheNumbers &numbers, const Out &out) {
    const edge_layer_cache layer = numbers.over(cache);
    const int64_t columns = numbers.heads * numbers.head_dim, n = queries.rows("queries", columns);
    check(edge_paged_attention(&host, &layer, queries.as<float>(), n, start_of(start), tree_of(tree, n),
                               out(queries, queries.rank - 1, {columns})));
}

// Returns the number of rows that remain.
inline int64_t kv_keep(const edge_host &host, const Tensor &rows, const Tensor &start, const Tensor &cache,
                       const CacheNumbers &numbers) {
    const edge_layer_cache layer = numbers.over(cache);
    check(edge_kv_keep(&host, &layer, rows.as<int64_t>(), rows.count(), start_of(start)));
    return start_of(start) + rows.count();
}

}  // namespace edge_adapter
