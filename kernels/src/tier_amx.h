// Integer products of large batches on the AMX matrix unit: 16 tokens x 16 rows x 64 columns per instruction.
//
// The sums are the same integers as those of the dot products, and are scaled in the same order: results agree bit
// for bit with smaller batches.

constexpr int max_tokens = 32;
constexpr int tile_tokens = 16;

// The operand of _tile_loadconfig.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0, 1: sums of the first and the last 16 tokens; 2, 3: their codes; 4: weights.
inline void configure_tiles(int count, int columns) {
    TileConfig config;
    const int rows[5] = {tile_tokens, count - tile_tokens, tile_tokens, count - tile_tokens, columns / 4};
    const int bytes[5] = {64, 64, columns, columns, 64};
    for (int tile = 0; tile < 5; ++tile) {
        const int used = rows[tile] < tile_tokens ? rows[tile] : tile_tokens;
        config.rows[tile] = uint8_t(count < tile_tokens && tile < 4 ? count : used < 1 ? 1 : used);
        config.row_bytes[tile] = uint16_t(bytes[tile]);
    }
    _tile_loadconfig(&config);
}

// Weights of `columns` columns as signed bytes, 4 columns of 16 rows per 64 bytes; returns where the codes end.
template <int bits>
inline const uint8_t *unpack_weights(const uint8_t *at, int columns, __m512i zero_code, int8_t *weights) {
    constexpr int field_count = 8 / bits;
    for (int column = 0; column < columns; column += 4 * field_count, at += 64) {
        const Bytes bytes = load_bytes(at);
        for (int f = 0; f < field_count; ++f, weights += 64) {
            _mm512_store_si512(weights, _mm512_sub_epi8(fields<bits>(bytes, f).v, zero_code));
        }
    }
    return at;
}

template <int bits>
void linear_amx(const Matrix &m, const uint8_t *at, const Activations &a, int64_t token, int count,
                float *out) {
    const int columns = m.block % 64 == 0 && m.padded % 64 == 0 ? 64 : 32;  // of one step
    const bool whole_groups = m.block == m.group, second = count > tile_tokens;
    const __m512i zero_code = _mm512_set1_epi8(bits == 8 ? -128 : bits == 2 ? 1 : m.minimum ? 0 : 8);
    alignas(64) int8_t weights[16 * 64];
    alignas(64) int32_t integers[max_tokens * linear_lanes];
    alignas(64) float partial[max_tokens * linear_lanes];
    const int8_t *codes = a.codes + token * a.stride;
    const float *scales = a.scales + token * a.blocks, *sums = a.sums + token * a.blocks;
    for (int t = 0; t < count; ++t) store(out + t * linear_lanes, zero());
    configure_tiles(count, columns);
    for (int64_t start = 0; start < m.padded; start += m.group) {
        const int64_t stop = start + m.group < m.padded ? start + m.group : m.padded;
        const float *group_sums = sums;
        for (int64_t first = start; first < stop; first += m.block) {
            const int64_t last = first + m.block < stop ? first + m.block : stop;
            _tile_zero(0);
            if (second) _tile_zero(1);
            for (int64_t column = first; column < last; column += columns) {
                at = unpack_weights<bits>(at, columns, zero_code, weights);
                _tile_loadd(4, weights, 64);
                _tile_loadd(2, codes + column, a.stride);
                _tile_dpbssd(0, 2, 4);
                if (second) {
                    _tile_loadd(3, codes + tile_tokens * a.stride + column, a.stride);
                    _tile_dpbssd(1, 3, 4);
                }
            }
            _tile_stored(0, integers, 64);
            if (second) _tile_stored(1, integers + tile_tokens * linear_lanes, 64);
            const Floats weight_scale =
                load_half(reinterpret_cast<const uint16_t *>(at));  // if the group ends here
            for (int t = 0; t < count; ++t) {
                const Ints whole = {_mm512_load_si512(integers + t * linear_lanes)};
                const Floats scaled = mul(to_float(whole), set(scales[t]));
                float *total = out + t * linear_lanes, *part = partial + t * linear_lanes;
                if (whole_groups) {
                    store(total, fma(scaled, weight_scale, load(total)));
                } else {
                    const Floats sum = first == start ? add(zero(), scaled) : add(load(part), scaled);
                    store(part, sum);
                    if (last == stop) store(total, fma(sum, weight_scale, load(total)));
                }
            }
            scales += count;
            sums += count;
        }
        at += 2 * linear_lanes;
        if (m.minimum) {
            const Floats minimum = load_half(reinterpret_cast<const uint16_t *>(at));
            at += 2 * linear_lanes;
            for (int t = 0; t < count; ++t) {
                float sum = 0.0f;
                for (const float *s = group_sums + t; s < sums; s += count) sum += *s;
                float *total = out + t * linear_lanes;
                store(total, fma(minimum, set(sum), load(total)));
            }
        }
    }
    _tile_release();
}

void linear_amx(const Matrix &m, const uint8_t *data, const Activations &a, int64_t token, int count,
                float *out) {
    const auto run = m.kind == EDGE_INT4   ? linear_amx<4>
                     : m.kind == EDGE_INT8 ? linear_amx<8>
                                           : linear_amx<2>;
    run(m, data, a, token, count, out);
}
