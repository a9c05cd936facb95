// edge_forward and what changes a cache: any order of batches (with trees, positions and wishes), keep, truncate and
// repeat. What is refused must leave the cache as it was.
#include <cmath>

#include "fuzz.h"
#include "network.h"

namespace {

constexpr int32_t context = 330;

struct Model {
    Network network;
    edge_model *model = nullptr;

    Model(int32_t kind, int32_t kv_type, int32_t activations, bool sparse, bool more, const std::string &tier)
        : network(kind, kv_type, activations, sparse, context, more) {
        require(edge_model_create(&network.config, network.weights.data(), int64_t(network.weights.size()),
                                  &alone(), tier.c_str(), &model) == EDGE_OK);
    }
};

const Model &model_of(uint8_t tier, uint8_t choice) {
    static Model *models[4][5][3][2][2][8];  // kept until the end
    const int kind = choice % 4, kv_type = choice % 80 / 16, activations = choice / 4 % 4 % 3,
              sparse = choice >> 7, more = tier / 8 % 2;
    Model *&model = models[kind][kv_type][activations][sparse][more][tier % 8];
    if (model == nullptr) {
        model = new Model(1 + kind, kv_type, activations, sparse != 0, more != 0, tier_of(tier % 8));
    }
    return *model;
}

bool run_batch(Input *input, const Model &model, edge_cache *cache) {
    const uint8_t wishes = input->take<uint8_t>();
    const int64_t length = edge_cache_length(cache);
    const auto n = int32_t(wishes & 1 ? input->size(1 + input->below_or(69)) : 1);
    const size_t count = size_t(std::max(0, std::min(n, 80)));
    std::vector<int32_t> tokens(count), positions(count);
    std::vector<uint64_t> tree(count);
    for (int32_t &token : tokens) token = int32_t(input->size(input->below_or(Network::vocab - 1)));
    for (int32_t &position : positions) position = int32_t(input->size(input->below_or(context - 1)));
    for (size_t i = 0; i < count; ++i) {
        // A parent among the nodes before, or any bits.
        const uint8_t parent = input->take<uint8_t>();
        tree[i] = parent == 255 ? input->take<uint64_t>() : uint64_t(1) << (i % 64);
        if (parent < 255 && i > 0 && i < 64 && parent % 8 != 0) tree[i] |= tree[parent % i];
    }
    std::vector<int32_t> layers(wishes & 2 ? 1 : 0);
    for (int32_t &layer : layers) layer = int32_t(input->size(0));
    edge_step step{};
    step.size = sizeof step;
    step.cache = cache;
    step.n = n;
    step.tokens = tokens.data();
    step.positions = wishes & 4 ? positions.data() : nullptr;
    step.tree = wishes & 8 ? tree.data() : nullptr;
    step.logits_count = wishes & 16 ? n : wishes & 32 ? 1 : int32_t(input->size(0));
    if (n > 80) return false;  // it would have to be refused before it is read
    std::vector<float> logits(count * Network::vocab), hidden(count * Network::hidden),
        outputs(layers.size() * count * Network::hidden);
    step.hidden = wishes & 64 ? hidden.data() : nullptr;
    step.layer_count = int32_t(layers.size());
    step.layer_indices = layers.data();
    step.layer_outputs = outputs.data();
    const edge_status status = edge_forward(model.model, &step, 1, logits.data());
    if (status != EDGE_OK) {
        require(edge_cache_length(cache) == length && std::strlen(edge_last_error()) > 10);
        return false;
    }
    require(edge_cache_length(cache) == length + n);
    for (int32_t i = 0; i < step.logits_count * Network::vocab; ++i) {
        require(std::isfinite(logits[size_t(i)]));
    }
    return true;
}

bool run_change(Input *input, edge_cache *cache) {
    const int64_t length = edge_cache_length(cache), wanted = input->size(input->below_or(length));
    switch (input->take<uint8_t>() % 3) {
        case 0:
            return edge_cache_truncate(cache, wanted) == EDGE_OK && edge_cache_length(cache) == wanted;
        case 1: {
            std::vector<int64_t> rows(size_t(input->below_or(20)));
            int64_t row = wanted;
            for (int64_t &each : rows) {
                each = input->size(row);
                row += 1 + input->take<uint8_t>() % 4;
            }
            const edge_status status = edge_cache_keep(cache, wanted, rows.data(), int64_t(rows.size()));
            require(edge_cache_length(cache) == (status == EDGE_OK ? wanted + int64_t(rows.size()) : length));
            return status == EDGE_OK;
        }
        default:
            return edge_cache_repeat(cache, input->size(length + input->below_or(40))) == EDGE_OK;
    }
}

}  // namespace

bool accepts(Input input) {
    const uint8_t tier = input.take<uint8_t>();
    const Model &model = model_of(tier, input.take<uint8_t>());
    edge_cache *cache = nullptr;
    require(edge_cache_create(model.model, &cache) == EDGE_OK);
    bool all = true;
    for (int step = 0; step < 12 && input.left() > 0; ++step) {
        const bool done =
            input.take<uint8_t>() % 3 > 0 ? run_batch(&input, model, cache) : run_change(&input, cache);
        all = all && done;
        require(edge_cache_length(cache) >= 0 && edge_cache_length(cache) <= context);
    }
    edge_cache_destroy(cache);
    return all;
}
