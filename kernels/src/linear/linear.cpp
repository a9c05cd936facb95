// Plans and fills the forms of an input, and divides the tiles of matrices among threads.
#include "linear/linear.h"

#include <algorithm>
#include <cstring>

namespace edge {
namespace {

constexpr int64_t alignment = 64;
constexpr int64_t piece_bytes =
    256 << 10;  // stays in the L2 cache across token blocks; two streams far apart
constexpr int64_t least_pieces_per_worker = 4;  // so that a thread that is held up can be helped out

// Tiles that a thread takes at a time: an even number, unless there is one only.
int64_t tiles_per_piece(int64_t tile_bytes, int64_t tiles, int32_t workers) {
    const int64_t by_size = std::max<int64_t>(1, piece_bytes / tile_bytes);
    const int64_t by_balance = std::max<int64_t>(1, tiles / (least_pieces_per_worker * workers));
    return round_up(std::min(by_size, by_balance), linear_tiles);
}

// Calls body(tile, tiles, distance) for tiles [from, to), two at a time, neighbours or half the range apart: memory
// gives two streams more than one, if they lie some pages apart.
template <class Body>
void for_tile_pairs(int64_t from, int64_t to, bool apart, const Body &body) {
    const int64_t distance = apart ? (to - from + 1) / 2 : 1, step = apart ? 1 : linear_tiles;
    for (int64_t tile = from; tile < (apart ? from + distance : to); tile += step) {
        body(tile, tile + distance < to ? linear_tiles : 1, distance);
    }
}

// Moves in[tiles][count][16] to its place.
void finish_tiles(const LinearJob &job, int64_t tile, int tiles, int64_t distance, int64_t token, int count,
                  const float *in) {
    for (int t = 0; t < count; ++t) {
        for (int i = 0; i < tiles; ++i) {
            const int64_t row = (tile + i * distance) * tile_rows, rows = job.matrix->rows - row;
            float *out = job.out + (token + t) * job.stride + row;
            __builtin_prefetch(out + linear_tiles * tile_rows, 1);  // the next call's rows, most likely
            const float *values = in + (int64_t(i) * count + t) * tile_rows;
            if (job.accumulate) {
                for (int64_t r = 0; r < std::min<int64_t>(rows, tile_rows); ++r) {
                    out[r] += job.scale * values[r];
                }
            } else if (job.bias != nullptr) {
                for (int64_t r = 0; r < std::min<int64_t>(rows, tile_rows); ++r) {
                    out[r] = values[r] + job.bias[row + r];
                }
            } else if (rows >= tile_rows) {
                std::memcpy(out, values, tile_rows * sizeof(float));
            } else {
                std::memcpy(out, values, size_t(rows) * sizeof(float));
            }
        }
    }
}

// Tokens of so many rows that a tile is multiplied by at a time: all, or equal shares in whole batches.
int64_t tokens_per_call(const Kernels &kernels, int64_t n, int rows) {
    const int64_t all = n * rows;
    if (all <= kernels.direct_tokens) return n;
    const int64_t calls = (all + linear_tokens - 1) / linear_tokens;
    return round_up((all + calls - 1) / calls, kernels.block_tokens) / rows;
}

// Whether the two tiles of a call are read at the same time.
bool reads_apart(const Kernels &kernels, int64_t rows) {
    return rows <= kernels.direct_tokens && kernels.batch(rows) <= kernels.streamed_tokens;
}

// `Kernels::linear` over tokens of one row or of two, whose results are added.
void multiply(const Kernels &kernels, const Matrix &matrix, int64_t tile, int tiles, int64_t distance,
              const Activations &a, int64_t token, int count, float *out) {
    kernels.linear(matrix, tile, tiles, distance, a, token * a.rows, count * a.rows, out);
    if (a.rows == 1) return;
    for (int64_t i = 0; i < int64_t(tiles) * count; ++i) {
        const float *const pair = out + 2 * i * tile_rows;
        float sums[tile_rows];
        for (int r = 0; r < tile_rows; ++r) sums[r] = pair[r] + pair[tile_rows + r];
        std::memcpy(out + i * tile_rows, sums, sizeof sums);
    }
}

}  // namespace

bool LinearInput::needs_form(const Matrix &matrix) const {
    return matrix.block != 0 && (mode_ != EDGE_ACTIVATIONS_F32 || matrix.minimum);
}

const LinearInput::Form *LinearInput::find(const Kernels &kernels, const Matrix &matrix) const {
    for (int i = 0; i < form_count_; ++i) {
        const Form &form = forms_[i];
        if (form.block == matrix.block && form.zero_code == kernels.zero_code(matrix)) return &form;
    }
    return nullptr;
}

void LinearInput::plan(const Kernels &kernels, const Matrix &matrix, int64_t tokens) {
    if (!needs_form(matrix)) return;
    Form *form = const_cast<Form *>(find(kernels, matrix));
    if (form == nullptr) {
        form = &forms_[form_count_++];
        form->block = matrix.block;
        form->zero_code = kernels.zero_code(matrix);
    }
    const int64_t rows = tokens * rows_;
    const int64_t entries = rows * ((matrix.padded + matrix.block - 1) / matrix.block);
    form->code_count = std::max(form->code_count, rows * matrix.padded);
    form->entry_count = std::max(form->entry_count, entries);
}

uint64_t LinearInput::bytes() const {
    int64_t total = 0;
    for (int i = 0; i < form_count_; ++i) {
        total +=
            round_up(forms_[i].code_count, alignment) + 4 * round_up(4 * forms_[i].entry_count, alignment);
    }
    return uint64_t(total);
}

void LinearInput::place(uint8_t *memory) {
    const auto take = [&memory](int64_t bytes) {
        uint8_t *taken = memory;
        memory += round_up(bytes, alignment);
        return taken;
    };
    for (int i = 0; i < form_count_; ++i) {
        Form &form = forms_[i];
        form.codes = reinterpret_cast<int8_t *>(take(form.code_count));
        form.scales = reinterpret_cast<float *>(take(4 * form.entry_count));
        form.sums = reinterpret_cast<float *>(take(4 * form.entry_count));
        form.offsets = reinterpret_cast<float *>(take(4 * form.entry_count));
        form.corrections = reinterpret_cast<int32_t *>(take(4 * form.entry_count));
    }
}

void LinearInput::select(const Kernels &kernels, const float *values, int64_t stride, int64_t n,
                         std::initializer_list<const Matrix *> matrices) {
    values_ = values;
    stride_ = stride;
    columns_ = (*matrices.begin())->padded;
    tokens_ = n;
    for (int i = 0; i < form_count_; ++i) forms_[i].active = false;
    for (const Matrix *matrix : matrices) {
        if (needs_form(*matrix)) const_cast<Form *>(find(kernels, *matrix))->active = true;
    }
}

void LinearInput::convert(const Kernels &kernels, int64_t token, int64_t first, int64_t last) {
    const float *row = values_ + token * stride_ + first;
    for (int i = 0; i < form_count_; ++i) {
        const Form &form = forms_[i];
        if (!form.active) continue;
        if (mode_ == EDGE_ACTIVATIONS_F32) {
            float *const sums = &form.sums[token * blocks(form) + first / form.block];
            kernels.sum_blocks(row, last - first, form.block, sums);
            continue;
        }
        QuantizedRow out[most_rows];
        for (int r = 0; r < rows_; ++r) out[r] = place_of(kernels, form, token * rows_ + r, first);
        kernels.quantize(row, last - first, form.block, form.zero_code, out, rows_);
    }
}

QuantizedRow LinearInput::place_of(const Kernels &kernels, const Form &form, int64_t row,
                                   int64_t first) const {
    const int64_t all = tokens_ * rows_, most = kernels.batch(all);
    const int64_t batch = row / most * most, lane = row - batch, count = std::min(most, all - batch);
    const int64_t at = batch * blocks(form) + first / form.block * count + lane;
    return {&form.codes[batch * columns_ + first * count + 4 * lane],
            &form.scales[at],
            &form.corrections[at],
            &form.offsets[at],
            &form.sums[at],
            count};
}

int64_t LinearInput::block_columns() const {
    int64_t most = pad_columns;
    for (int i = 0; i < form_count_; ++i) {
        if (forms_[i].active) most = std::max(most, forms_[i].block);
    }
    return most;
}

Activations LinearInput::form(const Kernels &kernels, const Matrix &matrix) const {
    Activations a;
    a.values = values_;
    a.stride = stride_;
    if (!needs_form(matrix)) return a;
    const Form &form = *find(kernels, matrix);
    a.blocks = blocks(form);
    a.sums = form.sums;
    if (mode_ != EDGE_ACTIVATIONS_F32) {
        a.stride = columns_;
        a.rows = rows_;
        a.batch = kernels.batch(tokens_ * rows_);
        a.offsets = form.offsets;
        a.codes = form.codes;
        a.scales = form.scales;
        a.corrections = form.corrections;
    }
    return a;
}

// The four kinds of weights with what stands before and after them.
#define EDGE_DOTS(dots, parts)                                                                            \
    {dots ", int8 weights" parts, dots ", int4 weights" parts, dots ", int4 weights with minimums" parts, \
     dots ", ternary weights" parts}

const char *linear_kernel(const Matrix &matrix, edge_activations mode) {
    if (matrix.kind == EDGE_F32) return "float32 rows";
    if (matrix.kind == EDGE_F16) return "float32 products, float16 weights";
    const int kind = matrix.kind == EDGE_INT8 ? 0 : matrix.kind == EDGE_TERNARY ? 3 : matrix.minimum ? 2 : 1;
    static const char *const exact[] = {
        "float32 products, dequantized int8", "float32 products, dequantized int4",
        "float32 products, dequantized int4 with minimums", "float32 products, dequantized ternary"};
    static const char *const dots[2][2][4] = {
        {EDGE_DOTS("int8 dots", ""), EDGE_DOTS("int8 dots", ", groups in parts")},
        {EDGE_DOTS("two int8 dots", ""), EDGE_DOTS("two int8 dots", ", groups in parts")}};
    if (mode == EDGE_ACTIVATIONS_F32) return exact[kind];
    return dots[mode == EDGE_ACTIVATIONS_INT16][matrix.block != matrix.group][kind];
}

void run_linear(const edge_parallel &parallel, const Kernels &kernels, const LinearInput &input, int64_t n,
                const LinearJob *jobs, int count) {
    int64_t tiles = 0, bytes = 0;
    for (int j = 0; j < count; ++j) {
        tiles += jobs[j].matrix->tiles;
        bytes += jobs[j].matrix->tiles * jobs[j].matrix->tile_bytes;
    }
    const int64_t grain = tiles_per_piece(std::max<int64_t>(1, bytes / tiles), tiles, parallel.workers);
    parallel_for(parallel, tiles, grain, [&](int64_t begin, int64_t end, int32_t) {
        alignas(64) float tile_out[linear_tiles * linear_tokens * tile_rows];
        int64_t first = 0;
        for (int j = 0; j < count; first += jobs[j++].matrix->tiles) {
            const Matrix &matrix = *jobs[j].matrix;
            const int64_t from = std::max<int64_t>(begin - first, 0),
                          to = std::min(end - first, matrix.tiles);
            if (from >= to) continue;
            const Activations activations = input.form(kernels, matrix);
            const int64_t step = tokens_per_call(kernels, n, activations.rows);
            const bool apart = reads_apart(kernels, n * activations.rows);
            for (int64_t token = 0; token < n; token += step) {
                const int now = int(std::min(step, n - token));
                for_tile_pairs(from, to, apart, [&](int64_t tile, int pair, int64_t distance) {
                    multiply(kernels, matrix, tile, pair, distance, activations, token, now, tile_out);
                    finish_tiles(jobs[j], tile, pair, distance, token, now, tile_out);
                });
            }
        }
    });
}

void run_swiglu(const edge_parallel &parallel, const Kernels &kernels, const LinearInput &input, int64_t n,
                const Matrix &gate, const Matrix &up, float *out, int64_t stride, LinearInput *next) {
    const LinearJob job{&gate, out, stride};
    const Activations gate_input = input.form(kernels, gate), up_input = input.form(kernels, up);
    // A loop may be cut anywhere: what it counts are whole blocks of the next input.
    const int64_t unit = next == nullptr ? 1 : next->block_columns() / tile_rows;
    const int64_t units = (gate.tiles + unit - 1) / unit;
    const int64_t grain = tiles_per_piece(gate.tile_bytes + up.tile_bytes, gate.tiles, parallel.workers);
    const int rows = std::max(gate_input.rows, up_input.rows);  // floats have one
    const int64_t step = tokens_per_call(kernels, n, rows);
    const bool apart = reads_apart(kernels, n * rows);
    parallel_for(parallel, units, (grain + unit - 1) / unit, [&](int64_t from, int64_t to, int32_t) {
        alignas(64) float gate_out[linear_tiles * linear_tokens * tile_rows], up_out[sizeof gate_out / 4];
        const int64_t begin = from * unit, end = std::min(to * unit, gate.tiles);
        for (int64_t token = 0; token < n; token += step) {
            const int now = int(std::min(step, n - token));
            for_tile_pairs(begin, end, apart, [&](int64_t tile, int pair, int64_t distance) {
                multiply(kernels, gate, tile, pair, distance, gate_input, token, now, gate_out);
                multiply(kernels, up, tile, pair, distance, up_input, token, now, up_out);
                kernels.swiglu(gate_out, up_out, int64_t(pair) * now * tile_rows, gate_out);
                finish_tiles(job, tile, pair, distance, token, now, gate_out);
            });
            if (next == nullptr) continue;
            const int64_t last = end == gate.tiles ? next->columns() : end * tile_rows;
            for (int64_t t = token; t < token + now; ++t) {
                next->convert(kernels, t, begin * tile_rows, last);
            }
        }
    });
}

}  // namespace edge
