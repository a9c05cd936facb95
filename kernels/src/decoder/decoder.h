// The native decoder: one call runs the tokens of all its steps through the whole transformer.
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

// A norm's weight, zero-padded to the stride of the hidden state.
using Norm = std::vector<float>;

struct Layer {
    Norm attention_norm, mlp_norm;
    Matrix q, k, v, o, gate, up, down;
};

}  // namespace edge

// Network: MiniCPM4 technical report; muP scales at the three places of the MiniCPM paper.
struct edge_model {
    edge_model(const edge_config &model_config, const edge_parallel &parallel, const edge::Kernels &tier);

    edge_status load(const edge_weight *weights, int64_t count);
    edge_status replace(const edge_weight *weights, int64_t count);
    edge_status forward(edge_step *steps, int32_t count, float *logits);
    edge::CacheShape cache_shape() const;
    uint64_t workspace_bytes() const;

    const edge_config config;
    const edge::Kernels &kernels;
    const edge::CachePools pools;
    edge::Observer observer;

   private:
    struct Shape {
        int64_t hidden, query, kv, intermediate;                              // columns
        int64_t hidden_stride, query_stride, kv_stride, intermediate_stride;  // padded to 32
    };

    edge_status set_weight(const edge_weight &weight, std::vector<bool> *seen);
    edge_status set_norm(const edge_matrix &matrix, const char *what, edge::Norm *norm);
    void allocate();
    edge_status check_pass(const edge_step *steps, int32_t count, const float *logits) const;
    edge_status check(const edge_step &step) const;
    void gather(edge_step *steps, int32_t count);
    void embed();
    void prepare_rope();
    void attention_block(int64_t index);
    void mlp_block(int64_t index);
    void store_keys_and_values(int64_t layer);
    void copy_layer_outputs(int64_t index);
    void compute_logits(const edge_step *steps, int32_t count, float *logits);
    void compute_head(int64_t rows, float *logits);
    void finish(edge_step *step, const edge::Sequence &sequence, const float *logits);
    const edge::Matrix &head() const { return untied_head_.data ? untied_head_ : embedding_; }
    void norm_row(const edge::Norm &norm, float scale, int64_t token) { norm_row(norm, scale, token, token); }
    void norm_row(const edge::Norm &norm, float scale, int64_t token, int64_t row);

    const edge_parallel parallel_;
    const Shape shape_;
    std::vector<float> inverse_frequency_;
    edge::Matrix embedding_, untied_head_;
    edge::Norm final_norm_;
    std::vector<edge::Layer> layers_;
    edge::LinearInput input_, down_input_;  // gate and up fill the second while they read the first
    edge::Attention attention_;
    std::unique_ptr<edge::SparseAttention> sparse_attention_;  // nullptr: all queries are dense
    edge::AlignedMemory input_memory_, down_input_memory_, attention_memory_, sparse_memory_;

    // A token of the pass: its id, and its row in the cache of its sequence.
    struct Token {
        int32_t id;
        const edge::CacheView *cache;
        int64_t row;
    };
    std::vector<Token> tokens_;
    struct Piece {
        int64_t first, last;
    };
    std::vector<Piece> pieces_;              // of the tokens: those whose rows share bytes stand together
    std::vector<edge_step *> running_;       // the steps without a fault ...
    std::vector<edge::Sequence> sequences_;  // ... and what attention has to know of them

    // The workspace, one row per token of a pass; columns beyond the real ones stay zero.
    std::vector<float> hidden_, normed_, queries_, keys_, values_, attended_, activated_;
    std::vector<float> rope_;  // [token][cosines, sines][head_dim / 2]
};
