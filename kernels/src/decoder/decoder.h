// The native decoder: one call runs the tokens of all its steps through the whole transformer.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "attention/cache.h"
#include "decoder/layer_runner.h"
#include "decoder/observer.h"
#include "tiers/kernels.h"

// Network: MiniCPM4 technical report; muP scales at the three places of the MiniCPM paper.
struct edge_model {
    edge_model(const edge_config &model_config, const edge_parallel &threads, const edge::Kernels &tier);

    edge_status load(const edge_weight *weights, int64_t count);
    edge_status replace(const edge_weight *weights, int64_t count);
    edge_status forward(edge_step *steps, int32_t count, float *logits);
    edge::CacheShape cache_shape() const;
    uint64_t workspace_bytes() const { return runner_.workspace_bytes(); }
    const edge::Matrix &embedding() const { return embedding_; }
    const edge::Matrix &head() const { return untied_head_.data ? untied_head_ : embedding_; }

    const edge_config config;
    const edge_parallel parallel;
    const edge::Kernels &kernels;
    const edge::CachePools pools;
    edge::Observer observer;
    std::vector<std::pair<edge_draft *, edge_draft_step *>> searches;  // behind the last pass of edge_decode

   private:
    edge_status set_weight(const edge_weight &weight, std::vector<bool> *seen);
    void allocate();
    edge_status check_pass(const edge_step *steps, int32_t count, const float *logits) const;
    edge_status check(const edge_step &step) const;
    edge_status check_soft(const edge_step &step) const;
    void gather(edge_step *steps, int32_t count);
    void embed();
    void prepare_rope();
    void copy_layer_outputs(int64_t index);
    void compute_logits(const edge_step *steps, int32_t count, float *logits);
    void compute_head(int64_t rows, float *logits);
    void finish(edge_step *step, const edge::Sequence &sequence, const float *logits);

    edge::Matrix embedding_, untied_head_;
    edge::Vector final_norm_;
    std::vector<edge::Layer> layers_;
    edge::LayerRunner runner_;

    std::vector<int32_t> ids_;          // of the tokens of the pass; 0 for soft rows
    std::vector<edge_step *> running_;  // the steps without a fault
};
