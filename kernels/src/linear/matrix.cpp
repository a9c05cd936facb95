// Checks matrices that a caller gives, and reads single rows of them.
#include "linear/matrix.h"

#include <cstring>
#include <initializer_list>

#include "abi/error.h"

namespace edge {
namespace {

// Columns per activation scale: finer scales cost time, coarser ones accuracy.
int64_t activation_block(int64_t group) {
    if (group <= max_block) return group;
    for (int64_t block : {128, 64, 32}) {
        if (group % block == 0) return block;
    }
    return pad_columns;
}

int bits_of(int32_t kind) { return kind == EDGE_INT8 ? 8 : kind == EDGE_INT4 ? 4 : 2; }

float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
    uint32_t bits;
    if (exponent == 31) {
        bits = sign | 0x7F800000 | mantissa << 13;
    } else if (exponent != 0) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {  // zero and subnormals: mantissa * 2^-24 is exact in float
        const float magnitude = float(mantissa) * 5.9604644775390625e-08f;
        std::memcpy(&bits, &magnitude, 4);
        bits |= sign;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace

edge_status check_matrix(const edge_matrix &in, const char *what, Matrix *out) {
    constexpr int64_t limit = int64_t(1) << 30;
    if (in.rows <= 0 || in.columns <= 0 || in.rows > limit || in.columns > limit) {
        return fail(EDGE_INVALID, "%s: impossible shape %lld x %lld.", what, (long long)in.rows,
                    (long long)in.columns);
    }
    if (in.kind < EDGE_F32 || in.kind > EDGE_TERNARY) {
        return fail(EDGE_INVALID, "%s: unknown kind %d.", what, in.kind);
    }
    if (in.group < 0 || in.group % pad_columns != 0) {
        return fail(EDGE_INVALID, "%s: group %d is neither 0 nor a multiple of %d.", what, in.group,
                    pad_columns);
    }
    if (in.minimum && in.kind != EDGE_INT4) return fail(EDGE_INVALID, "%s: only int4 has minimums.", what);
    Matrix m;
    m.kind = in.kind;
    m.minimum = in.minimum != 0;
    m.rows = in.rows;
    m.columns = in.columns;
    m.padded = round_up(in.columns, pad_columns);
    m.tiles = (in.rows + tile_rows - 1) / tile_rows;
    m.data = static_cast<const uint8_t *>(in.data);
    int64_t bytes;
    if (in.kind == EDGE_F32) {
        bytes = in.rows * in.columns * 4;
    } else if (in.kind == EDGE_F16) {
        m.tile_bytes = m.padded * tile_rows * 2;
        bytes = m.tiles * m.tile_bytes;
    } else {
        m.group = in.group ? in.group : m.padded;
        m.block = activation_block(m.group);
        m.zero_code = in.kind == EDGE_INT8 ? 128 : in.kind == EDGE_TERNARY ? 1 : m.minimum ? 0 : 8;
        const int64_t groups = (m.padded + m.group - 1) / m.group;
        const int64_t scale_bytes = tile_rows * 2 * (m.minimum ? 2 : 1);
        m.group_bytes = m.group * tile_rows * bits_of(in.kind) / 8 + scale_bytes;
        m.tile_bytes = m.padded * tile_rows * bits_of(in.kind) / 8 + groups * scale_bytes;
        bytes = m.tiles * m.tile_bytes;
    }
    bytes = round_up(bytes, 64);
    if (reinterpret_cast<uintptr_t>(in.data) % 4 != 0) {
        return fail(EDGE_INVALID, "%s: its data must start at a multiple of 4 bytes.", what);
    }
    if (in.data == nullptr || in.bytes != uint64_t(bytes)) {
        return fail(EDGE_INVALID, "%s: a %lld x %lld matrix takes %lld bytes, got %llu.", what,
                    (long long)in.rows, (long long)in.columns, (long long)bytes,
                    (unsigned long long)(in.data ? in.bytes : 0));
    }
    *out = m;
    return EDGE_OK;
}

void dequantize_row(const Matrix &m, int64_t row, float *out) {
    if (m.kind == EDGE_F32) {
        std::memcpy(out, m.data + row * m.columns * 4, size_t(m.columns) * 4);
        return;
    }
    const int lane = int(row % tile_rows);
    const uint8_t *at = m.tile(row / tile_rows);
    const auto half_at = [&](const uint8_t *halves) {
        uint16_t half;
        std::memcpy(&half, halves + 2 * lane, 2);
        return half_to_float(half);
    };
    if (m.kind == EDGE_F16) {
        for (int64_t column = 0; column < m.columns; ++column) {
            out[column] = half_at(at + column * tile_rows * 2);
        }
        return;
    }
    const int bits = bits_of(m.kind), fields = 8 / bits, per_block = 4 * fields, mask = (1 << bits) - 1;
    for (int64_t start = 0; start < m.padded; start += m.group) {
        const int64_t stop = start + m.group < m.padded ? start + m.group : m.padded;
        const uint8_t *tail = at + (stop - start) / per_block * 64;
        const float scale = half_at(tail), minimum = m.minimum ? half_at(tail + 32) : 0.0f;
        for (int64_t column = start; column < stop && column < m.columns; ++column) {
            const int64_t in_group = column - start;
            const int within = int(in_group % per_block);
            const uint8_t byte = at[in_group / per_block * 64 + lane * 4 + within % 4];
            out[column] = float((byte >> (within / 4 * bits) & mask) - m.zero_code) * scale + minimum;
        }
        at = tail + (m.minimum ? 64 : 32);
    }
}

}  // namespace edge
