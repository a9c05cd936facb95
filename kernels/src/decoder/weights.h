// Vectors and matrices of a network as a caller gives them, checked.
#pragma once

#include <cstdint>

#include "decoder/layer_runner.h"
#include "edge.h"

namespace edge {

// Of edge_role and edge_draft_role.
constexpr int role_count = 25;
const char *role_name(int role);
inline bool is_of_block(int role) { return role >= EDGE_DRAFT_MARKOV_BEFORE && role < role_count; }
inline bool is_of_draft(int role) {
    return (role >= EDGE_DRAFT_FC && role <= EDGE_DRAFT_HIDDEN_NORM) || is_of_block(role);
}
inline bool is_bias(int role) { return role >= EDGE_Q_BIAS && role <= EDGE_V_BIAS; }
inline bool is_head_norm(int role) { return role == EDGE_Q_NORM || role == EDGE_K_NORM; }
inline bool is_in_layer(int role) { return role >= EDGE_ATTENTION_NORM && !is_of_draft(role); }

// A vector of `size` floats, zero-padded to `stride`.
edge_status set_vector(const edge_matrix &given, const char *what, int64_t size, int64_t stride, Vector *out);
edge_status set_matrix(const edge_matrix &given, const char *what, int64_t rows, int64_t columns,
                       Matrix *out);
// role: one that is in a layer.
edge_status set_in_layer(int role, const edge_matrix &given, const char *what, const LayerShape &shape,
                         Layer *layer);
// The bias or the norm of heads that a role stands for; nullptr for another role.
Vector Layer::*optional_vector(int role);

}  // namespace edge
