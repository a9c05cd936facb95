// Norms and matrices of a network as a caller gives them, checked.
#pragma once

#include <cstdint>

#include "decoder/layer_runner.h"
#include "edge.h"

namespace edge {

// The name of an edge_role in sentences.
const char *role_name(int role);
constexpr int role_count = 12;
inline bool is_in_layer(int role) { return role >= EDGE_ATTENTION_NORM; }

// A vector of `size` floats, zero-padded to `stride`.
edge_status set_vector(const edge_matrix &given, const char *what, int64_t size, int64_t stride, Norm *out);
edge_status set_matrix(const edge_matrix &given, const char *what, int64_t rows, int64_t columns,
                       Matrix *out);
// role: one that is in a layer.
edge_status set_in_layer(int role, const edge_matrix &given, const char *what, const LayerColumns &columns,
                         Layer *layer);

}  // namespace edge
