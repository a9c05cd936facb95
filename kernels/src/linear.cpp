#include "linear.h"

#include <algorithm>
#include <cstring>

namespace edge {
namespace {

constexpr int most_tokens = 8;                  // upper bound of Kernels::max_tokens
constexpr int64_t piece_bytes = 64 << 10;       // weights of one piece stay in the L2 cache across token blocks
constexpr int64_t least_pieces_per_worker = 4;  // so that a thread that is held up can be helped out

int64_t tiles_per_piece(int64_t tile_bytes, int64_t tiles, int32_t workers) {
    const int64_t by_size = std::max<int64_t>(1, piece_bytes / tile_bytes);
    const int64_t by_balance = std::max<int64_t>(1, tiles / (least_pieces_per_worker * workers));
    return std::min(by_size, by_balance);
}

void finish_tile(const LinearJob &job, int64_t tile, int64_t token, int count, const float *tile_out) {
    const int64_t row = tile * tile_rows;
    const int64_t rows = std::min<int64_t>(tile_rows, job.matrix->rows - row);
    for (int t = 0; t < count; ++t) {
        float *out = job.out + (token + t) * job.stride + row;
        const float *in = tile_out + t * tile_rows;
        if (job.accumulate) {
            for (int64_t i = 0; i < rows; ++i) out[i] += job.scale * in[i];
        } else {
            std::memcpy(out, in, size_t(rows) * sizeof(float));
        }
    }
}

}  // namespace

bool LinearInput::needs_form(const Matrix &matrix) const {
    return matrix.block != 0 && (mode_ == EDGE_ACTIVATIONS_INT8 || matrix.minimum);
}

void LinearInput::plan(const Matrix &matrix, int64_t tokens) {
    if (!needs_form(matrix)) return;
    Form &form = forms_[form_index(matrix)];
    const auto grow = [](auto &buffer, int64_t size) {
        if (buffer.size() < size_t(size)) buffer.resize(size_t(size));
    };
    const int64_t scales = tokens * ((matrix.padded + matrix.block - 1) / matrix.block);
    grow(form.scales, scales);
    if (mode_ == EDGE_ACTIVATIONS_INT8) {
        grow(form.codes, tokens * matrix.padded);
        grow(form.sums, scales);
    }
}

void LinearInput::select(const float *values, int64_t stride, const std::vector<const Matrix *> &matrices) {
    values_ = values;
    stride_ = stride;
    columns_ = matrices.front()->padded;
    for (Form &form : forms_) form.active = false;
    for (const Matrix *matrix : matrices) {
        if (needs_form(*matrix)) forms_[form_index(*matrix)].active = true;
    }
}

void LinearInput::convert(const Kernels &kernels, int64_t token) {
    const float *row = values_ + token * stride_;
    for (int index = 0; index < form_count; ++index) {
        Form &form = forms_[index];
        if (!form.active) continue;
        const int64_t block = (index + 1) * pad_columns, at = token * blocks(index);
        if (mode_ == EDGE_ACTIVATIONS_INT8) {
            kernels.quantize(row, columns_, block, &form.codes[token * columns_], &form.scales[at], &form.sums[at]);
        } else {
            kernels.sum_blocks(row, columns_, block, &form.scales[at]);
        }
    }
}

Activations LinearInput::form(const Matrix &matrix) const {
    Activations a;
    a.values = values_;
    a.stride = stride_;
    if (!needs_form(matrix)) return a;
    const int index = form_index(matrix);
    const Form &form = forms_[index];
    a.blocks = blocks(index);
    if (mode_ == EDGE_ACTIVATIONS_INT8) {
        a.stride = columns_;
        a.codes = form.codes.data();
        a.scales = form.scales.data();
        a.sums = form.sums.data();
    } else {
        a.float_sums = form.scales.data();
    }
    return a;
}

uint64_t LinearInput::bytes() const {
    uint64_t total = 0;
    for (const Form &form : forms_) total += form.codes.size() + 4 * (form.scales.size() + form.sums.size());
    return total;
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
        alignas(64) float tile_out[most_tokens * tile_rows];
        int64_t first = 0;
        for (int j = 0; j < count; first += jobs[j++].matrix->tiles) {
            const Matrix &matrix = *jobs[j].matrix;
            const int64_t from = std::max<int64_t>(begin - first, 0), to = std::min(end - first, matrix.tiles);
            if (from >= to) continue;
            const Activations activations = input.form(matrix);
            for (int64_t token = 0; token < n; token += kernels.max_tokens) {
                const int now = int(std::min<int64_t>(kernels.max_tokens, n - token));
                for (int64_t tile = from; tile < to; ++tile) {
                    kernels.linear(matrix, tile, activations, token, now, tile_out);
                    finish_tile(jobs[j], tile, token, now, tile_out);
                }
            }
        }
    });
}

void run_swiglu(const edge_parallel &parallel, const Kernels &kernels, const LinearInput &input, int64_t n,
                const Matrix &gate, const Matrix &up, float *out, int64_t stride) {
    const LinearJob job{&gate, out, stride};
    const Activations gate_input = input.form(gate), up_input = input.form(up);
    const int64_t grain = tiles_per_piece(gate.tile_bytes + up.tile_bytes, gate.tiles, parallel.workers);
    parallel_for(parallel, gate.tiles, grain, [&](int64_t begin, int64_t end, int32_t) {
        alignas(64) float gate_out[most_tokens * tile_rows], up_out[most_tokens * tile_rows];
        for (int64_t token = 0; token < n; token += kernels.max_tokens) {
            const int now = int(std::min<int64_t>(kernels.max_tokens, n - token));
            for (int64_t tile = begin; tile < end; ++tile) {
                kernels.linear(gate, tile, gate_input, token, now, gate_out);
                kernels.linear(up, tile, up_input, token, now, up_out);
                kernels.swiglu(gate_out, up_out, now * tile_rows, gate_out);
                finish_tile(job, tile, token, now, gate_out);
            }
        }
    });
}

}  // namespace edge
