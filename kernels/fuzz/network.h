// A network of one tiny layer with random weights, for the fuzzers of the decoder.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "edge.h"

struct Network {
    static constexpr int32_t vocab = 37, hidden = 48, inner = 40, heads = 4, kv_heads = 2, head_dim = 16;

    edge_config config{};
    std::vector<edge_weight> weights;

    // more: with biases, norms of heads, and no rotation.
    Network(int32_t kind, int32_t kv_type, int32_t activations, bool sparse, int32_t context,
            bool more = false) {
        config.size = sizeof config;
        config.vocab_size = vocab;
        config.hidden_size = hidden;
        config.intermediate_size = inner;
        config.layers = 1;
        config.heads = heads;
        config.kv_heads = kv_heads;
        config.head_dim = head_dim;
        config.context = context;
        config.max_batch = std::min(context, 70);
        config.activations = activations;
        config.kv_type = kv_type;
        config.rms_norm_eps = 1e-5f;
        config.embedding_scale = config.residual_scale = config.logit_scale = config.rope_scale = 1.0f;
        for (int i = 0; i < head_dim / 2; ++i) frequencies_[i] = 1.0f / float(1 + i * i);
        config.inverse_frequency = frequencies_;
        if (more) config.layers_without_rope = one_layer_;
        if (sparse) config.sparse = {1, 32, 16, 64, 1, 64, 2, 70, 0};
        const struct {
            int32_t role;
            int64_t rows, columns;
        } shapes[] = {{EDGE_EMBEDDING, vocab, hidden},
                      {EDGE_FINAL_NORM, 1, hidden},
                      {EDGE_ATTENTION_NORM, 1, hidden},
                      {EDGE_Q, heads * head_dim, hidden},
                      {EDGE_K, kv_heads * head_dim, hidden},
                      {EDGE_V, kv_heads * head_dim, hidden},
                      {EDGE_O, hidden, heads * head_dim},
                      {EDGE_MLP_NORM, 1, hidden},
                      {EDGE_GATE, inner, hidden},
                      {EDGE_UP, inner, hidden},
                      {EDGE_DOWN, hidden, inner},
                      {EDGE_Q_BIAS, 1, heads * head_dim},
                      {EDGE_K_BIAS, 1, kv_heads * head_dim},
                      {EDGE_V_BIAS, 1, kv_heads * head_dim},
                      {EDGE_Q_NORM, 1, head_dim},
                      {EDGE_K_NORM, 1, head_dim}};
        std::minstd_rand random(7);
        for (const auto &shape : shapes) {
            if (shape.role > EDGE_DOWN && !more) continue;
            const bool norm = shape.rows == 1;
            const int64_t padded = (shape.columns + 31) / 32 * 32, tiles = (shape.rows + 15) / 16;
            const int bits = kind == EDGE_F16 ? 16 : kind == EDGE_INT8 ? 8 : kind == EDGE_INT4 ? 4 : 2;
            const int64_t groups = kind == EDGE_F16 ? 0 : 1;  // a scale per row
            int64_t bytes = norm ? shape.columns * 4 : tiles * (padded * 2 * bits + groups * 32);
            bytes = (bytes + 63) / 64 * 64;
            auto data = std::vector<uint8_t>(size_t(bytes));
            if (norm) {
                std::fill_n(reinterpret_cast<float *>(data.data()), shape.columns, 1.0f);
            } else {
                fill(kind, tiles, padded * 2 * bits, groups, random, &data);
            }
            memory_.push_back(std::move(data));
            weights.push_back({shape.role,
                               0,
                               {norm ? int32_t(EDGE_F32) : kind, 0, 0, 0, shape.rows, shape.columns,
                                memory_.back().data(), uint64_t(bytes)}});
        }
    }
    Network(const Network &) = delete;

   private:
    // Random codes; halves of about 0.1, as weights or as scales behind the codes of each tile.
    static void fill(int32_t kind, int64_t tiles, int64_t codes, int64_t groups, std::minstd_rand &random,
                     std::vector<uint8_t> *data) {
        uint8_t *at = data->data();
        const auto half = [&] {
            at[0] = uint8_t(random());
            at[1] = uint8_t((random() & 0x80) | 0x2c);
            at += 2;
        };
        for (int64_t tile = 0; tile < tiles; ++tile) {
            for (int64_t i = 0; kind == EDGE_F16 && i < codes / 2; ++i) half();
            for (int64_t i = 0; kind != EDGE_F16 && i < codes; ++i) {
                const uint8_t code = uint8_t(random() >> 8);
                *at++ = kind == EDGE_TERNARY ? code & 0x55 : code;
            }
            for (int64_t i = 0; i < 16 * groups; ++i) half();
        }
    }

    float frequencies_[head_dim / 2];
    const uint8_t one_layer_[1] = {1};
    std::vector<std::vector<uint8_t>> memory_;
};

// Every tier in turn.
inline std::string tier_of(uint8_t number) {
    const std::string all = edge_cpu_tiers();
    std::vector<std::string> names;
    for (size_t start = 0; start <= all.size();) {
        const size_t comma = std::min(all.find(',', start), all.size());
        names.push_back(all.substr(start, comma - start));
        start = comma + 1;
    }
    return names[number % names.size()];
}

inline const edge_parallel &alone() {
    static const edge_parallel parallel{nullptr, 1, nullptr};
    return parallel;
}

// Runs one more token of the cache; its logits.
inline edge_status run_token(edge_model *model, edge_cache *cache, int32_t token, float *logits) {
    edge_step step{};
    step.size = sizeof step;
    step.cache = cache;
    step.n = 1;
    step.tokens = &token;
    step.logits_count = 1;
    return edge_forward(model, &step, 1, logits);
}
