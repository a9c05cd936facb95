// Which shape the weight of a role has, and where it goes.
#include "decoder/weights.h"

#include <cstring>

#include "abi/error.h"

namespace edge {

const char *role_name(int role) {
    static const char *const names[] = {"embedding",
                                        "head",
                                        "final norm",
                                        "attention norm",
                                        "q_proj",
                                        "k_proj",
                                        "v_proj",
                                        "o_proj",
                                        "MLP norm",
                                        "gate_proj",
                                        "up_proj",
                                        "down_proj",
                                        "fc",
                                        "bias of fc",
                                        "norm of embeddings",
                                        "norm of hidden states",
                                        "bias of q_proj",
                                        "bias of k_proj",
                                        "bias of v_proj",
                                        "norm of q",
                                        "norm of k",
                                        "Markov head's token before",
                                        "Markov head's token after",
                                        "confidence head",
                                        "bias of the confidence head"};
    static_assert(sizeof names / sizeof *names == role_count, "every role has a name");
    return names[role];
}

Vector Layer::*optional_vector(int role) {
    switch (role) {
        case EDGE_Q_BIAS:
            return &Layer::q_bias;
        case EDGE_K_BIAS:
            return &Layer::k_bias;
        case EDGE_V_BIAS:
            return &Layer::v_bias;
        case EDGE_Q_NORM:
            return &Layer::q_norm;
        case EDGE_K_NORM:
            return &Layer::k_norm;
        default:
            return nullptr;
    }
}

edge_status set_vector(const edge_matrix &given, const char *what, int64_t size, int64_t stride,
                       Vector *out) {
    Matrix checked;
    if (const edge_status status = check_matrix(given, what, &checked)) return status;
    if (checked.kind != EDGE_F32 || checked.rows != 1 || checked.columns != size) {
        return fail(EDGE_INVALID, "%s: expected 1 x %lld float32, got %lld x %lld of kind %d.", what,
                    (long long)size, (long long)checked.rows, (long long)checked.columns, checked.kind);
    }
    out->assign(size_t(stride), 0.0f);
    std::memcpy(out->data(), given.data, size_t(size) * sizeof(float));
    return EDGE_OK;
}

edge_status set_matrix(const edge_matrix &given, const char *what, int64_t rows, int64_t columns,
                       Matrix *out) {
    if (const edge_status status = check_matrix(given, what, out)) return status;
    if (out->kind == EDGE_F32) {
        return fail(EDGE_INVALID, "%s: matrices can't be float32; use float16.", what);
    }
    if (out->rows != rows || out->columns != columns) {
        return fail(EDGE_INVALID, "%s: expected %lld x %lld, got %lld x %lld.", what, (long long)rows,
                    (long long)columns, (long long)out->rows, (long long)out->columns);
    }
    return EDGE_OK;
}

edge_status set_in_layer(int role, const edge_matrix &given, const char *what, const LayerShape &shape,
                         Layer *layer) {
    const LayerColumns &columns = shape.columns;
    const auto matrix = [&](int64_t rows, int64_t inputs, Matrix *out) {
        return set_matrix(given, what, rows, inputs, out);
    };
    if (Vector Layer::*const vector = optional_vector(role)) {
        const int64_t size = is_head_norm(role)    ? shape.cache.head_dim
                             : role == EDGE_Q_BIAS ? columns.query
                                                   : columns.kv;
        return set_vector(given, what, size, size, &(layer->*vector));
    }
    switch (role) {
        case EDGE_ATTENTION_NORM:
            return set_vector(given, what, columns.hidden, columns.hidden_stride, &layer->attention_norm);
        case EDGE_MLP_NORM:
            return set_vector(given, what, columns.hidden, columns.hidden_stride, &layer->mlp_norm);
        case EDGE_Q:
            return matrix(columns.query, columns.read, &layer->q);
        case EDGE_K:
            return matrix(columns.kv, columns.read, &layer->k);
        case EDGE_V:
            return matrix(columns.kv, columns.read, &layer->v);
        case EDGE_O:
            return matrix(columns.hidden, columns.query, &layer->o);
        case EDGE_GATE:
            return matrix(columns.intermediate, columns.hidden, &layer->gate);
        case EDGE_UP:
            return matrix(columns.intermediate, columns.hidden, &layer->up);
        default:
            return matrix(columns.hidden, columns.intermediate, &layer->down);
    }
}

}  // namespace edge
