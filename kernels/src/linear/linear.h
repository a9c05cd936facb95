// Linear operators over many tokens: prepares the activations in the form each matrix wants, and splits tiles
// over threads.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "threads/pool.h"
#include "tiers/kernels.h"

namespace edge {

// Floats from one row of `columns` values to the next, zeros after them. Not a large power of two: columns of many
// tokens would all fall into the same few sets of a cache.
inline int64_t row_stride(int64_t columns) {
    const int64_t stride = round_up(columns, pad_columns);
    return stride % 256 == 0 ? stride + pad_columns : stride;
}

// The left operands of linear operators, in every form that the planned matrices need, one input at a time.
class LinearInput {
   public:
    explicit LinearInput(edge_activations mode)
        : mode_(mode), rows_(mode == EDGE_ACTIVATIONS_INT16 ? most_rows : 1) {}

    // Plans room for `tokens` inputs of `matrix`; call for every matrix, then place().
    void plan(const Kernels &kernels, const Matrix &matrix, int64_t tokens);

    // Memory that the plan takes, and where it lies: `bytes()` bytes, aligned to 64.
    uint64_t bytes() const;
    void place(uint8_t *memory);

    // Takes n rows of `values` as the input of `matrices`. `values` is zero beyond the columns up to `stride`, a
    // multiple of 32. `before(token)` runs first on the thread that prepares the token's row.
    template <class Before>
    void prepare(const edge_parallel &parallel, const Kernels &kernels, const float *values, int64_t stride,
                 int64_t n, std::initializer_list<const Matrix *> matrices, const Before &before) {
        select(kernels, values, stride, n, matrices);
        // Interleaved rows of one batch share cache lines: two threads would take them from each other.
        const int64_t together = (kernels.batch(n * rows_) + rows_ - 1) / rows_;
        parallel_for(parallel, n, together, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t token = begin; token < end; ++token) {
                before(token);
                convert(kernels, token, 0, columns_);
            }
        });
    }

    // Takes n rows of `values`, as prepare does, whose columns are converted as they come.
    void select(const Kernels &kernels, const float *values, int64_t stride, int64_t n,
                std::initializer_list<const Matrix *> matrices);

    // Prepares columns [first, last) of a token: whole blocks, but for the end of the row.
    void convert(const Kernels &kernels, int64_t token, int64_t first, int64_t last);

    // The columns of a row, and the fewest that can be converted at a time.
    int64_t columns() const { return columns_; }
    int64_t block_columns() const;

    // The prepared input in the form that `matrix` wants.
    Activations form(const Kernels &kernels, const Matrix &matrix) const;

   private:
    // One way to quantize: it depends on a matrix's block and on the code that means zero in it.
    struct Form {
        int64_t block = 0;
        int32_t zero_code = 0;
        bool active = false;
        int64_t code_count = 0, entry_count = 0;  // planned
        int8_t *codes = nullptr;
        float *scales = nullptr, *sums = nullptr, *offsets = nullptr;
        int32_t *corrections = nullptr;
    };
    static constexpr int most_rows = 2;  // of codes that a token has: int8, and what it leaves as int8 again
    static constexpr int most_forms = 16;  // 4 block sizes, 4 zero codes

    int64_t blocks(const Form &form) const { return (columns_ + form.block - 1) / form.block; }
    QuantizedRow place_of(const Kernels &kernels, const Form &form, int64_t row, int64_t first) const;
    bool needs_form(const Matrix &matrix) const;
    const Form *find(const Kernels &kernels, const Matrix &matrix) const;

    const edge_activations mode_;
    const int rows_;
    const float *values_ = nullptr;
    int64_t stride_ = 0, columns_ = 0, tokens_ = 0;
    Form forms_[most_forms];
    int form_count_ = 0;
};

// Which kernel computes a matrix's operator, in a few words.
const char *linear_kernel(const Matrix &matrix, edge_activations mode);

// out[n][rows] = input x matrix^T, plus bias[rows] unless that is nullptr; or out += scale * the product.
struct LinearJob {
    const Matrix *matrix;
    float *out;
    int64_t stride;
    bool accumulate = false;
    float scale = 1.0f;
    const float *bias = nullptr;
};

// Runs several operators on the same prepared input as one parallel region.
void run_linear(const edge_parallel &parallel, const Kernels &kernels, const LinearInput &input, int64_t n,
                const LinearJob *jobs, int count);

// out[n][rows] = silu(gate x) * (up x). `next`, unless nullptr, has selected `out`: a thread converts the columns that
// it has computed.
void run_swiglu(const edge_parallel &parallel, const Kernels &kernels, const LinearInput &input, int64_t n,
                const Matrix &gate, const Matrix &up, float *out, int64_t stride, LinearInput *next);

}  // namespace edge
