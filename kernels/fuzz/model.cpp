// edge_model_create: a config and weights of which some numbers are replaced. What is accepted must run a token.
#include <cmath>

#include "fuzz.h"
#include "network.h"

namespace {

// Where a number of the config or of a weight stands.
int32_t *config_field(edge_config *config, uint8_t number) {
    int32_t *const fields[] = {&config->vocab_size,
                               &config->hidden_size,
                               &config->intermediate_size,
                               &config->layers,
                               &config->heads,
                               &config->kv_heads,
                               &config->head_dim,
                               &config->context,
                               &config->max_batch,
                               &config->activations,
                               &config->kv_type,
                               &config->sparse.enabled,
                               &config->sparse.kernel_size,
                               &config->sparse.kernel_stride,
                               &config->sparse.block_size,
                               &config->sparse.init_blocks,
                               &config->sparse.window_size,
                               &config->sparse.topk,
                               &config->sparse.dense_len,
                               &config->sparse.exact_lse};
    return fields[number % (sizeof fields / sizeof *fields)];
}

void change(Input *input, edge_config *config, std::vector<edge_weight> *weights) {
    constexpr int64_t sizes[] = {0, 1, 16, 32, 48, 64, 128, 4096, 1 << 24, 1 << 30, -1, INT32_MAX, INT64_MAX};
    const uint8_t what = input->take<uint8_t>(), which = input->take<uint8_t>();
    const int64_t number =
        which & 1 ? sizes[input->take<uint8_t>() % (sizeof sizes / sizeof *sizes)] : input->take<int64_t>();
    edge_weight &weight = (*weights)[which / 2 % weights->size()];
    switch (what % 8) {
        case 0:
        case 1:
            *config_field(config, which / 2) = int32_t(number);
            break;
        case 2: {
            float *const scales[] = {&config->rms_norm_eps, &config->embedding_scale, &config->residual_scale,
                                     &config->logit_scale, &config->rope_scale};
            *scales[which / 2 % 5] = input->take<float>();
            break;
        }
        case 3:
            weight.matrix.rows = number;
            break;
        case 4:
            weight.matrix.columns = number;
            break;
        case 5:
            weight.matrix.bytes = uint64_t(number);
            break;
        case 6: {
            int32_t *const fields[] = {&weight.role, &weight.layer, &weight.matrix.kind, &weight.matrix.group,
                                       &weight.matrix.minimum};
            *fields[number % 5 < 0 ? 0 : number % 5] = int32_t(input->take<int32_t>());
            break;
        }
        default:
            weights->push_back(weight);
    }
}

}  // namespace

bool accepts(Input input) {
    const std::string tier = tier_of(input.take<uint8_t>());
    const uint8_t choice = input.take<uint8_t>();
    const Network network(1 + choice % 4, choice / 4 % 3, choice / 12 % 2, choice & 128, 80, choice & 64);
    edge_config config = network.config;
    std::vector<edge_weight> weights = network.weights;
    for (int64_t i = input.below_or(3); i > 0; --i) change(&input, &config, &weights);
    float frequencies[512] = {};
    for (int32_t i = 0; i < std::min(config.head_dim, 1024) / 2; ++i) {
        frequencies[i] = network.config.inverse_frequency[i % (Network::head_dim / 2)];
    }
    config.inverse_frequency = frequencies;
    constexpr int32_t most_layers = 4096;
    const std::vector<uint8_t> without(size_t(std::clamp(config.layers, 0, most_layers)), 1);
    if (config.layers_without_rope != nullptr) config.layers_without_rope = without.data();
    // Every weight's memory is as large as it says, so that a read behind it is seen.
    std::vector<std::vector<uint8_t>> memory;
    for (edge_weight &weight : weights) {
        const auto *const from = static_cast<const uint8_t *>(weight.matrix.data);
        const uint64_t bytes = weight.matrix.bytes;
        if (bytes > 1 << 20) return false;
        auto data = std::vector<uint8_t>(size_t(bytes), 0x2c);
        const auto original = std::find_if(network.weights.begin(), network.weights.end(),
                                           [&](const edge_weight &w) { return w.matrix.data == from; });
        std::copy_n(from, std::min(bytes, original->matrix.bytes), data.begin());
        memory.push_back(std::move(data));
        weight.matrix.data = memory.back().data();
    }
    edge_model *model = nullptr;
    edge_cache *cache = nullptr;
    const edge_status created =
        edge_model_create(&config, weights.data(), int64_t(weights.size()), &alone(), tier.c_str(), &model);
    require((created == EDGE_OK) == (model != nullptr));
    require(created == EDGE_OK || std::strlen(edge_last_error()) > 10);
    if (created == EDGE_OK && edge_cache_create(model, &cache) == EDGE_OK) {
        std::vector<float> logits(size_t(config.vocab_size));
        const edge_status status = run_token(model, cache, 0, logits.data());
        require(status == EDGE_OK || status == EDGE_NOT_FINITE);
        require(status != EDGE_OK || std::isfinite(logits[0]));
        require(edge_cache_length(cache) == (status == EDGE_OK));
    }
    edge_cache_destroy(cache);
    edge_model_destroy(model);
    return created == EDGE_OK;
}
