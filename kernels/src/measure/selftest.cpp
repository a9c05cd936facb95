// Holds every kernel of a tier against the portable one: odd sizes, random and adversarial values.
// A kernel that builds but computes garbage on some CPU is found here before a user finds it in the text.
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "abi/error.h"
#include "attention/attention.h"
#include "attention/cache.h"
#include "memory/aligned.h"
#include "tiers/kernels.h"

namespace edge {
namespace {

constexpr float float_tolerance = 2e-5f;  // relative to the largest value: tiers round sums differently

class SelfTest {
   public:
    SelfTest(const Kernels &tested, const Kernels &reference) : tested_(tested), reference_(reference) {}

    edge_status run() {
        for (const int32_t kind : {EDGE_F16, EDGE_INT8, EDGE_INT4, EDGE_TERNARY}) {
            for (const int32_t group : {0, 32, 96, 128, 256}) {
                if (kind == EDGE_F16 && group != 0) continue;
                for (const int64_t columns : {5, 32, 160, 576}) {
                    linear(kind, group, false, 17, columns);
                    if (kind == EDGE_INT4) linear(kind, group, true, 40, columns);
                }
            }
        }
        for (const int64_t size : {16, 48, 576}) elementwise(size);
        for (const int64_t head_dim : {16, 64, 80, 128}) {
            for (const edge_kv_type type :
                 {EDGE_KV_F16, EDGE_KV_F32, EDGE_KV_INT4, EDGE_KV_INT8, EDGE_KV_INT16}) {
                for (const Values values : {random_values, all_zero, one_hot, tiny}) {
                    attention(head_dim, type, values);
                }
                summaries(head_dim, type);
            }
        }
        if (failure_.empty()) return EDGE_OK;
        return fail(EDGE_UNSUPPORTED,
                    "The %s kernels compute wrong values on this CPU (%s); set EDGE_CPU=portable.",
                    tested_.name, failure_.c_str());
    }

   private:
    enum Values { random_values, all_equal, all_zero, one_hot, tiny };

    std::vector<float> make(int64_t count, Values values) {
        std::vector<float> x(size_t(count), values == all_equal ? -3.0f : 0.0f);
        if (values == random_values || values == tiny) {
            std::normal_distribution<float> normal(0.0f, values == tiny ? 1e-39f : 1.0f);
            for (float &v : x) v = normal(random_);
        }
        if (values == one_hot) x[x.size() / 2] = 1e4f;
        return x;
    }

    template <class T>
    void bytes(std::vector<T> *out) {
        for (T &v : *out) v = T(random_());
    }

    __attribute__((format(printf, 2, 3))) void failed(const char *format, ...) {
        char text[160];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        if (failure_.empty()) failure_ = text;
    }

    void compare(const char *what, const std::vector<float> &got, const std::vector<float> &wanted) {
        float largest = 0.0f;
        for (const float v : wanted) largest = std::max(largest, std::fabs(v));
        for (size_t i = 0; i < wanted.size(); ++i) {
            const bool same =
                got[i] == wanted[i] || std::fabs(got[i] - wanted[i]) <= float_tolerance * largest;
            if (!same) return failed("%s: %g instead of %g at %zu", what, got[i], wanted[i], i);
        }
    }

    // Random codes in the canonical layout, with scales and minimums that are finite halves.
    std::vector<uint8_t> packed(const edge_matrix &matrix, int bits, int64_t padded, int64_t group) {
        std::vector<uint8_t> data(matrix.bytes);
        bytes(&data);
        uint8_t *at = data.data();
        for (int64_t tile = 0; tile < (matrix.rows + 15) / 16; ++tile) {
            for (int64_t start = 0; start < padded; start += group) {
                const int64_t codes = std::min(group, padded - start) * 2 * bits;
                if (matrix.kind == EDGE_TERNARY) {
                    for (int64_t i = 0; i < codes; ++i) {
                        at[i] &= uint8_t(~((at[i] >> 1 & 0x55) & at[i]));  // no code 3
                    }
                }
                at += codes;
                for (int half = 0; half < (matrix.minimum ? 32 : 16); ++half, at += 2) {
                    at[1] = (at[1] & 0x83) | 0x2C;
                }
            }
        }
        return data;
    }

    void linear(int32_t kind, int32_t group, bool minimum, int64_t rows, int64_t columns) {
        const int bits = kind == EDGE_F16 ? 16 : kind == EDGE_INT8 ? 8 : kind == EDGE_INT4 ? 4 : 2;
        const int64_t padded = round_up(columns, pad_columns), real_group = group ? group : padded;
        const int64_t tiles = (rows + 15) / 16,
                      groups = kind == EDGE_F16 ? 0 : (padded + real_group - 1) / real_group;
        edge_matrix raw{kind, group, minimum, 0, rows, columns, nullptr, 0};
        raw.bytes = uint64_t(round_up(tiles * (padded * 2 * bits + groups * (minimum ? 64 : 32)), 64));
        std::vector<uint8_t> data;
        if (kind == EDGE_F16) {
            data.resize(raw.bytes);
            const std::vector<float> values = make(int64_t(raw.bytes) / 2, random_values);
            reference_.to_half(values.data(), int64_t(values.size()),
                               reinterpret_cast<uint16_t *>(data.data()));
        } else {
            data = packed(raw, bits, padded, real_group);
        }
        raw.data = data.data();
        Matrix matrix;
        if (check_matrix(raw, "self-test", &matrix) != EDGE_OK) return failed("%s", edge_last_error());

        for (const Values values : {random_values, all_equal, all_zero, one_hot, tiny}) {
            // Every batch size of either kind with random values; with special ones few tokens and several batches.
            const int most = tested_.direct_tokens + tested_.block_tokens;
            for (int count = 1; count <= most; ++count) {
                const bool ends = count == 1 || count == most;
                const bool new_size = count <= tested_.max_tokens + 1 || count > tested_.direct_tokens;
                if (!ends && (values != random_values || !new_size)) continue;
                const std::vector<float> x = make(count * padded, values);
                for (const bool exact : {true, false}) compare_linear(matrix, x, count, exact);
            }
        }
    }

    // `count` tokens on the tested tier, each token alone on the reference.
    void compare_linear(const Matrix &matrix, const std::vector<float> &x, int count, bool exact) {
        const Inputs together(tested_, matrix, x.data(), count, exact);
        const int64_t distance =
            std::max<int64_t>(1, matrix.tiles - 1);  // all tiles: each first one to the last
        for (int64_t tile = 0; tile < matrix.tiles; tile += distance) {
            const int tiles = tile + distance < matrix.tiles ? 2 : 1;
            std::vector<float> got(size_t(tiles * count) * 16), wanted(got);
            tested_.linear(matrix, tile, tiles, distance, together.activations, 0, count, got.data());
            for (int i = 0; i < tiles * count; ++i) {
                const Inputs alone(reference_, matrix, &x[size_t(i % count * matrix.padded)], 1, exact);
                reference_.linear(matrix, tile + i / count * distance, 1, 0, alone.activations, 0, 1,
                                  &wanted[size_t(i) * 16]);
            }
            char what[96];
            std::snprintf(what, sizeof what, "linear kind %d group %d%s columns %d tokens %d %s", matrix.kind,
                          int(matrix.group), matrix.minimum ? " min" : "", int(matrix.columns), count,
                          exact ? "exact" : "int8");
            compare(what, got, wanted);
        }
    }

    // Activations in the form that a matrix wants.
    struct Inputs {
        Inputs(const Kernels &kernels, const Matrix &matrix, const float *x, int count, bool exact) {
            const int64_t columns = matrix.padded, block = matrix.block ? matrix.block : columns;
            const int64_t blocks = (columns + block - 1) / block;
            codes.resize(size_t(count * columns));
            scales.resize(size_t(count * blocks));
            sums.resize(scales.size());
            offsets.resize(scales.size());
            corrections.resize(scales.size());
            for (int64_t t = 0; t < count; ++t) {
                if (exact) {
                    kernels.sum_blocks(x + t * columns, columns, block, &sums[size_t(t * blocks)]);
                } else {
                    const int64_t most = kernels.batch(count), batch = t / most * most;
                    const size_t at = size_t(batch * blocks + t - batch);
                    const QuantizedRow row{&codes[size_t(batch * columns + 4 * (t - batch))],
                                           &scales[at],
                                           &corrections[at],
                                           &offsets[at],
                                           &sums[at],
                                           std::min(most, count - batch)};
                    kernels.quantize(x + t * columns, columns, block, kernels.zero_code(matrix), &row, 1);
                }
            }
            activations.values = x;
            activations.stride = columns;
            activations.blocks = blocks;
            activations.batch = kernels.batch(count);
            activations.sums = sums.data();
            if (!exact) {
                activations.codes = codes.data();
                activations.scales = scales.data();
                activations.offsets = offsets.data();
                activations.corrections = corrections.data();
            }
        }

        Activations activations;
        std::vector<int8_t> codes;
        std::vector<float> scales, sums, offsets;
        std::vector<int32_t> corrections;
    };

    void elementwise(int64_t size) {
        for (const Values values : {random_values, all_equal, all_zero, one_hot, tiny}) {
            const std::vector<float> x = make(size, values), y = make(size, random_values);
            std::vector<float> got(x), wanted(x);
            tested_.rms_norm(x.data(), y.data(), 1e-5f, 0.5f, size, size, got.data());
            reference_.rms_norm(x.data(), y.data(), 1e-5f, 0.5f, size, size, wanted.data());
            compare("rms_norm", got, wanted);
            tested_.swiglu(x.data(), y.data(), size, got.data());
            reference_.swiglu(x.data(), y.data(), size, wanted.data());
            compare("swiglu", got, wanted);
            got = wanted = x;
            tested_.rope(got.data(), y.data(), y.data() + size / 2, size / 2);
            reference_.rope(wanted.data(), y.data(), y.data() + size / 2, size / 2);
            compare("rope", got, wanted);
            got = wanted = x;
            tested_.rotate(got.data(), size);
            reference_.rotate(wanted.data(), size);
            compare("rotate", got, wanted);
            quantized(x, size);

            std::vector<uint16_t> got_half(x.size()), wanted_half(x.size());
            tested_.to_half(x.data(), size, got_half.data());
            reference_.to_half(x.data(), size, wanted_half.data());
            if (got_half != wanted_half) failed("to_half: another rounding");
        }
        std::vector<float> x = make(size, random_values);
        std::vector<uint8_t> got(x.size()), wanted(x.size());
        const std::vector<float> scale{tested_.quantize_int4(x.data(), size, got.data())};
        compare("quantize_int4", scale, {reference_.quantize_int4(x.data(), size, wanted.data())});
        if (got != wanted) failed("quantize_int4: other codes");
        if (!tested_.all_finite(x.data(), size)) failed("all_finite: false for finite values");
        for (const float bad : {INFINITY, -INFINITY, NAN}) {
            x[x.size() - 1] = bad;
            if (tested_.all_finite(x.data(), size)) failed("all_finite: true for %g", bad);
        }
    }

    void quantized(const std::vector<float> &x, int64_t size) {
        constexpr int64_t block = 32, count = 3;  // a batch of three: its last lanes are a value and the rest
        const size_t blocks = size_t((size + block - 1) / block);
        std::vector<int8_t> codes[2];
        std::vector<float> scales[2], sums[2], offsets[2];
        std::vector<int32_t> corrections[2];
        for (int which = 0; which < 2; ++which) {
            codes[which].resize(x.size() * count);
            scales[which].resize(blocks * count);
            sums[which].resize(blocks * count);
            corrections[which].resize(blocks * count);
            offsets[which].resize(blocks * count);
            const auto lane = [&](size_t i) {
                return QuantizedRow{&codes[which][4 * i], &scales[which][i], &corrections[which][i],
                                    &offsets[which][i],   &sums[which][i],   count};
            };
            const QuantizedRow rows[] = {lane(1), lane(2)};
            (which ? reference_ : tested_).quantize(x.data(), size, block, 8, rows, 2);
        }
        if (codes[0] != codes[1]) failed("quantize: other codes");
        // The sum bias differs, and what stands for it.
        for (size_t i = 0; i < corrections[0].size(); ++i) {
            if (i % count > 0) corrections[0][i] -= tested_.sum_bias;
        }
        if (scales[0] != scales[1] || sums[0] != sums[1] || corrections[0] != corrections[1]) {
            failed("quantize: other scales or sums");
        }
    }

    // Full of NaN: a kernel that reads what it has not written is found out.
    static void place_scratch(int64_t head_dim, int64_t rows, AlignedMemory *memory,
                              AttentionScratch *scratch) {
        const uint64_t bytes = place_attention_scratch(nullptr, head_dim, rows, scratch);
        memory->reset(bytes);
        std::memset(memory->data(), 0xFF, bytes);
        place_attention_scratch(memory->data(), head_dim, rows, scratch);
    }

    // Two chunks, the second one ragged, merged.
    void attention(int64_t head_dim, edge_kv_type type, Values values) {
        constexpr int rows = 11;
        constexpr int64_t positions = attention_chunk + 67;
        edge_cache cache({1, 1, head_dim, positions, type});
        if (cache.make_room(0, positions) != EDGE_OK) return failed("%s", edge_last_error());
        for (int64_t p = 0; p < positions; ++p) {
            const std::vector<float> key = make(head_dim, random_values), value = make(head_dim, values);
            cache.store(reference_, 0, 0, p, key.data(), value.data());
        }
        const std::vector<float> queries = make(rows * head_dim, values);
        const float *query_rows[rows];
        int64_t starts[rows], limits[rows];
        for (int r = 0; r < rows; ++r) query_rows[r] = &queries[size_t(r * head_dim)];
        enum Seen { some, all, window };
        for (const Seen seen : {some, all, window}) {
            for (int r = 0; r < rows; ++r) {
                limits[r] = seen == some ? 3 + 31 * r : positions;
                starts[r] = 31 * r;
            }
            const int64_t *first = seen == window ? starts : nullptr;
            std::vector<float> results[2];
            for (int which = 0; which < 2; ++which) {
                const Kernels &kernels = which ? reference_ : tested_;
                AttentionRows task{type, head_dim, 0.125f, rows, query_rows, limits, first, {}};
                AlignedMemory memory;
                place_scratch(head_dim, rows, &memory, &task.scratch);
                kernels.prepare_queries(task);
                std::vector<float> state(size_t(rows * (head_dim + 2)), 0.0f), part(state);
                std::fill_n(state.begin(), rows, -INFINITY);
                const auto view = [](std::vector<float> &all) {
                    return AttentionState{all.data(), all.data() + rows, all.data() + 2 * rows};
                };
                for (int64_t begin = 0; begin < positions; begin += attention_chunk) {
                    AttentionChunk c;
                    c.blocks = 0;
                    for (int64_t at = begin; at < std::min(begin + attention_chunk, positions);
                         at += attention_block) {
                        c.keys[c.blocks] = cache.keys(0, 0, at);
                        c.values[c.blocks] = cache.values(0, 0, at);
                        c.starts[c.blocks++] = at;
                    }
                    std::fill_n(c.next, attention_blocks, c.keys[0]);
                    kernels.attend(task, c, view(part));
                    kernels.merge(view(part), rows, head_dim, view(state));
                }
                results[which] = state;
            }
            compare("attention", results[0], results[1]);
        }
    }

    // Sums of keys, and scores and weights of windows.
    void summaries(int64_t head_dim, edge_kv_type type) {
        constexpr int rows = 11;
        constexpr int64_t windows = attention_block - 5;
        edge_cache cache({1, 1, head_dim, attention_block, type});
        if (cache.make_room(0, attention_block) != EDGE_OK) return failed("%s", edge_last_error());
        for (int64_t p = 0; p < attention_block; ++p) {
            const std::vector<float> key = make(head_dim, random_values);
            cache.store(reference_, 0, 0, p, key.data(), key.data());
        }
        const uint8_t *block = cache.keys(0, 0, 0);
        const std::vector<float> queries = make(rows * head_dim, random_values);
        const float *query_rows[rows];
        for (int r = 0; r < rows; ++r) query_rows[r] = &queries[size_t(r * head_dim)];
        std::vector<float> sums[2], powers[2], weights[2];
        for (int which = 0; which < 2; ++which) {
            const Kernels &kernels = which ? reference_ : tested_;
            sums[which].assign(size_t(head_dim), 1.0f);
            for (int64_t group = 0; group < attention_block / key_group; ++group) {
                kernels.add_keys(type, head_dim, block, group, sums[which].data());
            }
            if (has_scales(type)) continue;  // summaries are floats
            AttentionRows task{type, head_dim, 0.125f, rows, query_rows, nullptr, nullptr, {}};
            AlignedMemory memory;
            place_scratch(head_dim, rows, &memory, &task.scratch);
            kernels.prepare_queries(task);
            kernels.score_windows(task, block, block, task.scratch.scores);
            weights[which].assign(size_t(attention_block), 0.0f);
            for (int r = 0; r < rows; ++r) {
                const float *scores = task.scratch.scores + r * attention_chunk;
                float maximum, sum;
                kernels.sum_powers(scores, windows, &maximum, &sum);
                powers[which].insert(powers[which].end(), {maximum, sum});
                kernels.add_weights(scores, windows, maximum - 1.0f, 1.0f / sum, weights[which].data());
            }
        }
        compare("add_keys", sums[0], sums[1]);
        compare("sum_powers", powers[0], powers[1]);
        compare("add_weights", weights[0], weights[1]);
    }

    const Kernels &tested_, &reference_;
    std::mt19937 random_{1};
    std::string failure_;
};

}  // namespace
}  // namespace edge

edge_status edge_self_test(const char *tier) {
    const edge::Kernels *tested = edge::find_kernels(tier), *reference = edge::find_kernels("portable");
    if (tested == nullptr) {
        return edge::fail(EDGE_UNSUPPORTED, "This CPU has no kernels called '%s'; it has: %s.",
                          tier ? tier : "", edge_cpu_tiers());
    }
    try {
        return edge::SelfTest(*tested, *reference).run();
    } catch (const std::exception &error) {
        return edge::fail(EDGE_NO_MEMORY, "The self-test could not run: %s.", error.what());
    }
}
