// All kernels of one tier, written once over the sixteen lanes of simd/*.h. Included by tier_*.cpp inside an
// anonymous namespace, so that no code of one tier can be linked into another.

// ---- Linear ---------------------------------------------------------------------------------------

constexpr int prefetch_distance = 2048;  // bytes: about what one core's reads need to stay in flight

template <int bits>
inline int zero_code(const Matrix &m) {
    return bits == 8 ? 128 : bits == 2 ? 1 : m.minimum ? 0 : 8;
}

// Integer dot products with quantized activations, M tokens at once.
template <int bits, int M>
void linear_int8(const Matrix &m, const uint8_t *at, const Activations &a, int64_t token, float *out) {
    constexpr int field_count = 8 / bits, block_columns = 4 * field_count;
    constexpr int chains = M <= 2 ? 2 : 1;  // independent sums hide the latency of the dot products
    const int offset = zero_code<bits>(m) - (bits == 8 ? biased_offset : 0);
    const int8_t *codes[M];
    const float *scales[M];
    const int32_t *sums[M];
    Floats total[M];
    for (int t = 0; t < M; ++t) {
        codes[t] = a.codes + (token + t) * a.stride;
        scales[t] = a.scales + (token + t) * a.blocks;
        sums[t] = a.sums + (token + t) * a.blocks;
        total[t] = zero();
    }
    int64_t block = 0;
    for (int64_t start = 0; start < m.padded; start += m.group) {
        const int64_t stop = start + m.group < m.padded ? start + m.group : m.padded;
        Floats partial[M];
        float weighted_sum[M];
        for (int t = 0; t < M; ++t) {
            partial[t] = zero();
            weighted_sum[t] = 0.0f;
        }
        for (int64_t first = start; first < stop; first += m.block, ++block) {
            const int64_t last = first + m.block < stop ? first + m.block : stop;
            Ints sum[M][chains];
            for (int t = 0; t < M; ++t) {
                sum[t][0] = set_int(-offset * sums[t][block]);
                for (int c = 1; c < chains; ++c) sum[t][c] = set_int(0);
            }
            for (int64_t column = first; column < last; column += 2 * block_columns) {
#pragma GCC unroll 2
                for (int j = 0; j < 2; ++j) {
                    prefetch(at + prefetch_distance);
                    const Bytes bytes = load_bytes(at);
                    at += 64;
#pragma GCC unroll 4
                    for (int f = 0; f < field_count; ++f) {
                        const Bytes weights = fields<bits>(bytes, f);
                        const int64_t offset4 = column + j * block_columns + 4 * f;
                        const int chain = (j * field_count + f) % chains;
#pragma GCC unroll 8
                        for (int t = 0; t < M; ++t) {
                            sum[t][chain] = bits == 8 ? dot_biased(sum[t][chain], weights, codes[t] + offset4)
                                                      : dot_small(sum[t][chain], weights, codes[t] + offset4);
                        }
                    }
                }
            }
            for (int t = 0; t < M; ++t) {
                Ints whole = sum[t][0];
                for (int c = 1; c < chains; ++c) whole = add(whole, sum[t][c]);
                partial[t] = fma(to_float(whole), set(scales[t][block]), partial[t]);
                weighted_sum[t] += scales[t][block] * float(sums[t][block]);
            }
        }
        const Floats scale = load_half(reinterpret_cast<const uint16_t *>(at));
        at += 2 * linear_lanes;
        for (int t = 0; t < M; ++t) total[t] = fma(partial[t], scale, total[t]);
        if (m.minimum) {
            const Floats minimum = load_half(reinterpret_cast<const uint16_t *>(at));
            at += 2 * linear_lanes;
            for (int t = 0; t < M; ++t) total[t] = fma(minimum, set(weighted_sum[t]), total[t]);
        }
    }
    for (int t = 0; t < M; ++t) store(out + t * linear_lanes, total[t]);
}

// Float products with the dequantized weights, M tokens at once.
template <int bits, int M>
void linear_exact(const Matrix &m, const uint8_t *at, const Activations &a, int64_t token, float *out) {
    constexpr int field_count = 8 / bits;
    const Floats offset = set(float(zero_code<bits>(m)));
    Floats total[M];
    for (int t = 0; t < M; ++t) total[t] = zero();
    int64_t block = 0;
    for (int64_t start = 0; start < m.padded; start += m.group) {
        const int64_t stop = start + m.group < m.padded ? start + m.group : m.padded;
        Floats partial[M][4];
        for (int t = 0; t < M; ++t) {
            for (int c = 0; c < 4; ++c) partial[t][c] = zero();
        }
        for (int64_t column0 = start; column0 < stop; column0 += 4 * field_count, at += 64) {
            const Bytes bytes = load_bytes(at);
            for (int f = 0; f < field_count; ++f) {
                const Bytes codes = fields<bits>(bytes, f);
#pragma GCC unroll 4
                for (int b = 0; b < 4; ++b) {
                    const Floats weights = sub(column(codes, b), offset);
                    for (int t = 0; t < M; ++t) {
                        const float x = a.values[(token + t) * a.stride + column0 + 4 * f + b];
                        partial[t][b] = fma(weights, set(x), partial[t][b]);
                    }
                }
            }
        }
        const int64_t first_block = block;
        for (int64_t first = start; first < stop; first += m.block) ++block;
        const Floats scale = load_half(reinterpret_cast<const uint16_t *>(at));
        at += 2 * linear_lanes;
        for (int t = 0; t < M; ++t) {
            const Floats sum = add(add(partial[t][0], partial[t][1]), add(partial[t][2], partial[t][3]));
            total[t] = fma(sum, scale, total[t]);
        }
        if (m.minimum) {
            const Floats minimum = load_half(reinterpret_cast<const uint16_t *>(at));
            at += 2 * linear_lanes;
            for (int t = 0; t < M; ++t) {
                float sum = 0.0f;
                for (int64_t i = first_block; i < block; ++i) sum += a.float_sums[(token + t) * a.blocks + i];
                total[t] = fma(minimum, set(sum), total[t]);
            }
        }
    }
    for (int t = 0; t < M; ++t) store(out + t * linear_lanes, total[t]);
}

template <int M>
void linear_half(const Matrix &m, const uint8_t *at, const Activations &a, int64_t token, float *out) {
    Floats total[M][4];
    for (int t = 0; t < M; ++t) {
        for (int c = 0; c < 4; ++c) total[t][c] = zero();
    }
    for (int64_t column = 0; column < m.padded; column += 4) {
        prefetch(at + prefetch_distance);
        prefetch(at + prefetch_distance + 64);
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c, at += 2 * linear_lanes) {
            const Floats weights = load_half(reinterpret_cast<const uint16_t *>(at));
            for (int t = 0; t < M; ++t) {
                total[t][c] = fma(weights, set(a.values[(token + t) * a.stride + column + c]), total[t][c]);
            }
        }
    }
    for (int t = 0; t < M; ++t) {
        store(out + t * linear_lanes, add(add(total[t][0], total[t][1]), add(total[t][2], total[t][3])));
    }
}

using LinearFunction = void (*)(const Matrix &, const uint8_t *, const Activations &, int64_t, float *);

template <int bits>
LinearFunction pick_int8(int count) {
    static const LinearFunction table[] = {
        linear_int8<bits, 1>, linear_int8<bits, 2>, linear_int8<bits, 3>, linear_int8<bits, 4>,
#if EDGE_MAX_TOKENS > 4
        linear_int8<bits, 5>, linear_int8<bits, 6>, linear_int8<bits, 7>, linear_int8<bits, 8>,
#endif
    };
    return table[count - 1];
}

constexpr int max_exact_tokens = 4;

template <int bits>
LinearFunction pick_exact(int count) {
    static const LinearFunction table[] = {linear_exact<bits, 1>, linear_exact<bits, 2>, linear_exact<bits, 3>,
                                           linear_exact<bits, 4>};
    return table[count - 1];
}

LinearFunction pick_half(int count) {
    static const LinearFunction table[] = {linear_half<1>, linear_half<2>, linear_half<3>, linear_half<4>};
    return table[count - 1];
}

void linear(const Matrix &m, int64_t tile, const Activations &a, int64_t token, int count, float *out) {
    const uint8_t *data = m.tile(tile);
    if (m.kind != EDGE_F16 && a.codes != nullptr) {
        const LinearFunction run = m.kind == EDGE_INT4   ? pick_int8<4>(count)
                                   : m.kind == EDGE_INT8 ? pick_int8<8>(count)
                                                         : pick_int8<2>(count);
        run(m, data, a, token, out);
        return;
    }
    for (int done = 0; done < count; done += max_exact_tokens) {
        const int now = count - done < max_exact_tokens ? count - done : max_exact_tokens;
        const LinearFunction run = m.kind == EDGE_F16    ? pick_half(now)
                                   : m.kind == EDGE_INT4 ? pick_exact<4>(now)
                                   : m.kind == EDGE_INT8 ? pick_exact<8>(now)
                                                         : pick_exact<2>(now);
        run(m, data, a, token + done, out + done * linear_lanes);
    }
}

// ---- Activations ------------------------------------------------------------------------------------

void quantize(const float *x, int64_t columns, int64_t block, int8_t *codes, float *scales, int32_t *sums) {
    for (int64_t first = 0; first < columns; first += block, ++scales, ++sums) {
        const int64_t last = first + block < columns ? first + block : columns;
        Floats largest = zero();
        for (int64_t i = first; i < last; i += 16) largest = max(largest, absolute(load(x + i)));
        const float peak = reduce_max(largest);
        const float inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
        // Below the normal range 127 / peak overflows; such a block is zero for all that follows.
        const bool usable = inverse <= 3.0e38f;
        const Floats factor = set(usable ? inverse : 0.0f);
        int32_t sum = 0;
        for (int64_t i = first; i < last; i += 16) {
            store_int8(codes + i, mul(load(x + i), factor));
            for (int k = 0; k < 16; ++k) sum += codes[i + k];
        }
        *scales = usable ? peak / 127.0f : 0.0f;
        *sums = sum;
    }
}

void sum_blocks(const float *x, int64_t columns, int64_t block, float *sums) {
    for (int64_t first = 0; first < columns; first += block) {
        const int64_t last = first + block < columns ? first + block : columns;
        Floats sum = zero();
        for (int64_t i = first; i < last; i += 16) sum = add(sum, load(x + i));
        *sums++ = reduce_add(sum);
    }
}

// ---- Elementwise ------------------------------------------------------------------------------------

void rms_norm(const float *x, const float *weight, float eps, float scale, int64_t size, int64_t padded, float *out) {
    Floats squares = zero();
    for (int64_t i = 0; i < padded; i += 16) {
        const Floats v = load(x + i);
        squares = fma(v, v, squares);
    }
    const Floats inverse = set(1.0f / sqrtf(reduce_add(squares) / float(size) + eps));
    const Floats factor = set(scale);
    for (int64_t i = 0; i < padded; i += 16) {
        store(out + i, mul(mul(mul(load(x + i), inverse), load(weight + i)), factor));
    }
}

// e^x with a relative error below 3e-7; 0 below about -87 and for -infinity.
inline Floats exponential(Floats x) {
    const Floats lowest = set(-87.33654f);
    const Floats clamped = max(x, lowest);
    const Floats n = round_even(mul(clamped, set(1.44269504f)));
    Floats r = fma(n, set(-0.693359375f), clamped);
    r = fma(n, set(2.12194440e-4f), r);
    Floats p = set(1.9875691500e-4f);
    p = fma(p, r, set(1.3981999507e-3f));
    p = fma(p, r, set(8.3334519073e-3f));
    p = fma(p, r, set(4.1665795894e-2f));
    p = fma(p, r, set(1.6666665459e-1f));
    p = fma(p, r, set(5.0000001201e-1f));
    p = add(fma(mul(r, r), p, r), set(1.0f));
    return scale_by_power(p, n);
}

void swiglu(const float *gate, const float *up, int64_t count, float *out) {
    const Floats one = set(1.0f), highest = set(88.0f);
    for (int64_t i = 0; i < count; i += 16) {
        const Floats g = load(gate + i);
        // -max(-x, -88) = min(x, 88): e^88 is still finite
        const Floats negative = sub(zero(), max(g, sub(zero(), highest)));
        store(out + i, mul(divide(g, add(one, exponential(negative))), load(up + i)));
    }
}

void rope(float *head, const float *cosines, const float *sines, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + half] = b * cosines[i] + a * sines[i];
    }
}

void to_half(const float *x, int64_t count, uint16_t *out) {
    for (int64_t i = 0; i < count; i += 16) store_half(out + i, load(x + i));
}

bool all_finite(const float *x, int64_t count) {
    Floats sum = zero();
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) sum = fma(load(x + i), zero(), sum);
    float rest = reduce_add(sum);  // 0 * infinity and 0 * NaN are NaN
    for (; i < count; ++i) rest += x[i] * 0.0f;
    return rest == 0.0f;
}

// ---- Attention --------------------------------------------------------------------------------------

inline Floats load_row(const void *rows, bool half, int64_t index) {
    return half ? load_half(static_cast<const uint16_t *>(rows) + index) : load(static_cast<const float *>(rows) + index);
}

// Calls hide(i) for the positions of the chunk whose bit in the row's tree mask is off.
template <class Hide>
inline void for_hidden_tree_positions(const AttentionChunk &c, int row, const Hide &hide) {
    for (int64_t i = c.tree_start > c.begin ? c.tree_start - c.begin : 0; i < c.end - c.begin; ++i) {
        if (!(c.masks[row] >> (c.begin + i - c.tree_start) & 1)) hide(i);
    }
}

// scores[i] = exp(q.k_i * scale - maximum) for the positions that the row sees, else 0.
inline void score_row(const AttentionChunk &c, int row, int64_t visible, float *scores, float *maximum, float *sum) {
    const float *query = c.queries[row];
    const int64_t positions = c.end - c.begin;
    const Floats hidden = set(-INFINITY);
    int64_t p = 0;
    for (; p < visible; p += 16) {
        Floats dots[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) dots[i] = zero();
        for (int64_t d = 0; d < c.head_dim; d += 16) {
            const Floats q = load(query + d);
            const float *keys = c.key_scratch + p * c.head_dim + d;
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) dots[i] = fma(q, load(keys + i * c.head_dim), dots[i]);
        }
        store(scores + p, select_below(p, visible, mul(reduce_rows(dots), set(c.scale)), hidden));
    }
    for (; p < positions; p += 16) store(scores + p, hidden);
    if (c.masks != nullptr) {
        for_hidden_tree_positions(c, row, [&](int64_t i) { scores[i] = -INFINITY; });
    }
    Floats largest = hidden;
    for (p = 0; p < positions; p += 16) largest = max(largest, load(scores + p));
    *maximum = reduce_max(largest);
    const Floats shift = set(*maximum == -INFINITY ? 0.0f : *maximum);
    // The clamped exponential of -infinity is tiny, not zero.
    for (p = 0; p < positions; p += 16) {
        store(scores + p, select_below(p, visible, exponential(sub(load(scores + p), shift)), zero()));
    }
    if (c.masks != nullptr) {
        for_hidden_tree_positions(c, row, [&](int64_t i) { scores[i] = 0.0f; });
    }
    Floats total = zero();
    for (p = 0; p < positions; p += 16) total = add(total, load(scores + p));
    *sum = reduce_add(total);
}

// outputs of R rows, columns [column, column + 16 V): weighted sums of the values.
template <int R, int V>
inline void weigh_values(const AttentionChunk &c, int row, int64_t column, float *outputs) {
    Floats sums[R][V];
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) sums[r][v] = zero();
    }
    for (int64_t i = 0; i < c.end - c.begin; ++i) {
        Floats values[V];
        for (int v = 0; v < V; ++v) {
            values[v] = load_row(c.values, c.half, (c.begin + i) * c.head_dim + column + 16 * v);
        }
        for (int r = 0; r < R; ++r) {
            const Floats weight = set(c.score_scratch[(row + r) * attention_chunk + i]);
            for (int v = 0; v < V; ++v) sums[r][v] = fma(weight, values[v], sums[r][v]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) store(outputs + (row + r) * c.head_dim + column + 16 * v, sums[r][v]);
    }
}

template <int R>
inline void weigh_rows(const AttentionChunk &c, int row, float *outputs) {
    int64_t column = 0;
    for (; column + 64 <= c.head_dim; column += 64) weigh_values<R, 4>(c, row, column, outputs);
    for (; column < c.head_dim; column += 16) weigh_values<R, 1>(c, row, column, outputs);
}

void attend(const AttentionChunk &c, const AttentionState &out) {
    int64_t furthest = 0;
    for (int r = 0; r < c.rows; ++r) furthest = c.limits[r] > furthest ? c.limits[r] : furthest;
    const int64_t needed = (furthest < c.end ? furthest : c.end) - c.begin;
    for (int64_t i = 0; i < needed * c.head_dim; i += 16) {
        store(c.key_scratch + i, load_row(c.keys, c.half, c.begin * c.head_dim + i));
    }
    for (int r = 0; r < c.rows; ++r) {
        int64_t visible = (c.limits[r] < c.end ? c.limits[r] : c.end) - c.begin;
        if (visible < 0) visible = 0;
        score_row(c, r, visible, c.score_scratch + r * attention_chunk, out.maxima + r, out.sums + r);
    }
    int row = 0;
    for (; row + 4 <= c.rows; row += 4) weigh_rows<4>(c, row, out.outputs);
    for (; row < c.rows; ++row) weigh_rows<1>(c, row, out.outputs);
}

void merge(const AttentionState &part, int rows, int64_t head_dim, const AttentionState &into) {
    for (int r = 0; r < rows; ++r) {
        if (part.maxima[r] == -INFINITY) continue;
        const float highest = part.maxima[r] > into.maxima[r] ? part.maxima[r] : into.maxima[r];
        float factors[16];
        store(factors, exponential(set(into.maxima[r] - highest)));
        const float old_factor = into.maxima[r] == -INFINITY ? 0.0f : factors[0];
        store(factors, exponential(set(part.maxima[r] - highest)));
        const float new_factor = factors[0];
        into.maxima[r] = highest;
        into.sums[r] = into.sums[r] * old_factor + part.sums[r] * new_factor;
        float *outputs = into.outputs + r * head_dim;
        for (int64_t d = 0; d < head_dim; d += 16) {
            const Floats fresh = mul(load(part.outputs + r * head_dim + d), set(new_factor));
            store(outputs + d, fma(load(outputs + d), set(old_factor), fresh));
        }
    }
}

const Kernels table = {EDGE_TIER_NAME, max_tokens, linear, quantize, sum_blocks, rms_norm, swiglu,
                       rope,           to_half,    attend, merge,    all_finite};
