// The native decoder: one call runs a batch of tokens through the whole transformer.
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
    edge_status forward(edge_cache &cache, const edge_batch &batch);
    edge::CacheShape cache_shape() const;
    uint64_t workspace_bytes() const;

    const edge_config config;
    const edge::Kernels &kernels;
    edge::Observer observer;

   private:
    struct Shape {
        int64_t hidden, query, kv, intermediate;                              // columns
        int64_t hidden_stride, query_stride, kv_stride, intermediate_stride;  // padded to 32
    };

    edge_status set_weight(const edge_weight &weight, std::vector<bool> *seen);
    edge_status set_norm(const edge_matrix &matrix, const char *what, edge::Norm *norm);
    void allocate();
    edge_status check(const edge_cache &cache, const edge_batch &batch) const;
    void embed(const edge_batch &batch);
    void prepare_rope(const edge_batch &batch, int64_t past);
    void attention_block(int64_t index, edge_cache &cache, const edge_batch &batch, int64_t past);
    void mlp_block(int64_t index, int64_t n);
    void store_keys_and_values(int64_t layer, edge_cache &cache, int64_t n, int64_t past);
    edge_status finish(const edge_batch &batch);
    const edge::Matrix &head() const { return untied_head_.data ? untied_head_ : embedding_; }
    void norm_row(const edge::Norm &norm, float scale, int64_t token);

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

    // The workspace, one row per token of a batch; columns beyond the real ones stay zero.
    std::vector<float> hidden_, normed_, queries_, keys_, values_, attended_, activated_;
    std::vector<float> rope_;  // [token][cosines, sines][head_dim / 2]
};
