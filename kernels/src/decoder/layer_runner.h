// The layers of a network over the tokens of a pass, in a workspace of its own: what the decoder and drafts share.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/attention.h"
#include "attention/cache.h"
#include "attention/sparse_attention.h"
#include "decoder/observer.h"
#include "linear/linear.h"
#include "memory/aligned.h"
#include "tiers/kernels.h"

namespace edge {

// A bias, or a norm's weight, which is zero-padded to the stride of the rows that it norms.
using Vector = std::vector<float>;
inline const float *data_of(const Vector &vector) { return vector.empty() ? nullptr : vector.data(); }

// Of the vectors only the MLP's norm is never empty; an empty one is not there.
struct Layer {
    Vector attention_norm, mlp_norm;
    Vector q_bias, k_bias, v_bias;
    Vector q_norm, k_norm;  // of every head, before it is rotated
    bool rotates = true;
    Matrix q, k, v, o, gate, up, down;
};

// The rows of a layer: columns, and floats from one row to the next.
struct LayerColumns {
    LayerColumns(int64_t hidden_size, int64_t query_size, int64_t kv_size, int64_t intermediate_size,
                 int64_t read_size)
        : hidden(hidden_size),
          query(query_size),
          kv(kv_size),
          intermediate(intermediate_size),
          read(read_size),
          hidden_stride(row_stride(hidden)),
          query_stride(row_stride(query)),
          kv_stride(row_stride(kv)),
          intermediate_stride(row_stride(intermediate)) {}

    int64_t hidden, query, kv, intermediate;
    int64_t read;  // by attention: those of the normed residual stream, or of other rows
    int64_t hidden_stride, query_stride, kv_stride, intermediate_stride;
};

// What the layers of a network have in common.
struct LayerShape {
    LayerColumns columns;
    CacheShape cache;
    int64_t heads;
    int64_t max_tokens;  // of a pass
    int64_t window;      // positions that dense attention sees, its own included; 0: all
    edge_sparse sparse;
    edge_activations activations;
    float norm_eps, residual_scale;
    float rope_scale;                      // factor on cos and sin
    std::vector<float> inverse_frequency;  // [head_dim / 2]
};

// Rows that attention reads in place of the normed residual stream.
struct Rows {
    const float *data = nullptr;
    int64_t stride = 0;
};

class LayerRunner {
   public:
    LayerRunner(const edge_parallel &parallel, const Kernels &kernels, const Observer &observer,
                const LayerShape &layer_shape);

    // Room for the inputs of these matrices; then the workspace, which may be made again after further plans.
    void plan(const Layer &layer);
    void plan(const Matrix &matrix) { input_.plan(kernels_, matrix, shape.max_tokens); }
    void allocate();
    uint64_t workspace_bytes() const;

    // A pass: the tokens of its sequences, `sequence.first` being set here, and their rotary angles.
    void begin();
    void add(Sequence sequence);
    void rotate(int64_t token, int64_t position);
    int64_t tokens() const { return int64_t(tokens_.size()); }
    const std::vector<Sequence> &sequences() const { return sequences_; }

    // The two blocks of a layer, whose number is `index`.
    void attention_block(const Layer &layer, int64_t index, Rows rows = {});
    void mlp_block(const Layer &layer, int64_t index);
    // The parts of the first one: keys and values into the caches, and where wanted the queries; the rest.
    void store_rows(const Layer &layer, int64_t index, bool with_queries, Rows rows = {});
    void attend(const Layer &layer, int64_t index);
    // Between these two: of the pass's only sequence, without a tree, the last token alone goes on.
    void keep_last();
    // The layers' summaries of a sequence are complete.
    void finish(const Sequence &sequence) const;

    // The residual stream of a token, and a row for what is made of it; columns beyond the real ones are zero.
    float *hidden(int64_t token) { return &hidden_[size_t(token * shape.columns.hidden_stride)]; }
    float *normed(int64_t row) { return &normed_[size_t(row * shape.columns.hidden_stride)]; }
    // Row `row` of the normed states: the token's.
    void norm_row(const Vector &norm, float scale, int64_t token, int64_t row) {
        kernels_.rms_norm(hidden(token), norm.data(), shape.norm_eps, scale, shape.columns.hidden,
                          shape.columns.hidden_stride, normed(row));
    }
    // For operators beside the layers.
    LinearInput &input() { return input_; }

    const LayerShape shape;

   private:
    // A token of the pass: its row in the cache of its sequence.
    struct Token {
        const CacheView *cache;
        int64_t row;
    };
    struct Piece {
        int64_t first, last;
    };

    void append_rows(const Layer &layer, int64_t index, int64_t heads);
    void norm_heads(const Vector &norm, int64_t heads, float *row) const;

    const edge_parallel &parallel_;
    const Kernels &kernels_;
    const Observer &observer_;
    LinearInput input_, down_input_;  // gate and up fill the second while they read the first
    Attention attention_;
    std::unique_ptr<SparseAttention> sparse_attention_;  // nullptr: all queries are dense
    AlignedMemory input_memory_, down_input_memory_, attention_memory_, sparse_memory_;

    std::vector<Token> tokens_;
    std::vector<Piece> pieces_;        // of the tokens: those whose rows share bytes stand together
    std::vector<Sequence> sequences_;  // what attention has to know of them

    // The workspace, one row per token of a pass; columns beyond the real ones stay zero.
    std::vector<float> hidden_, normed_, queries_, keys_, values_, attended_, activated_;
    std::vector<float> rope_;  // [token][cosines, sines][head_dim / 2]
};

}  // namespace edge
