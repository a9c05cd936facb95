// Geometry of the canonical weight layout (edge/quant/packing.py describes it).
#pragma once

#include <stdint.h>

#include "edge.h"

namespace edge {

static_assert(sizeof(void *) == 8, "sizes of models need 64 bits");

constexpr int tile_rows = 16;
constexpr int pad_columns = 32;
constexpr int max_block = 128;  // most columns that share one activation scale

__attribute__((always_inline)) inline int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// A checked matrix, with what the kernels need precomputed.
struct Matrix {
    int32_t kind = EDGE_F32;
    bool minimum = false;
    int64_t rows = 0, columns = 0;
    int64_t padded = 0;       // columns rounded up to 32
    int64_t group = 0;        // columns per scale (per-row: padded)
    int64_t group_bytes = 0;  // of a whole group's codes, scales and minimums
    int64_t block = 0;        // columns per activation scale: divides group; 0 for floats
    int64_t tiles = 0;        // tiles of 16 rows
    int64_t tile_bytes = 0;   // bytes of a tile
    int32_t zero_code = 0;    // the stored code of a weight of zero; with minimums codes start at 0
    const uint8_t *data = nullptr;

    // Always inlined: no tier may emit a copy of it that another one could be linked to.
    __attribute__((always_inline)) const uint8_t *tile(int64_t index) const {
        return data + index * tile_bytes;
    }
};

// Checks kind, shape, group and size; on success fills `out`. `what` names the matrix in the error sentence.
edge_status check_matrix(const edge_matrix &in, const char *what, Matrix *out);

// out[columns] = one row in float32.
void dequantize_row(const Matrix &matrix, int64_t row, float *out);

}  // namespace edge
