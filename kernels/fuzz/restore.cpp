// edge_cache_restore: rows of any content and length from a file, and a token that reads them.
#include <cmath>

#include "fuzz.h"
#include "network.h"

namespace {

constexpr int32_t context = 330;

struct Model {
    Network network;
    edge_model *model = nullptr;
    edge_cache *cache = nullptr;

    Model(int32_t kv_type, bool sparse, const std::string &tier)
        : network(EDGE_INT4, kv_type, EDGE_ACTIVATIONS_INT8, sparse, context) {
        require(edge_model_create(&network.config, network.weights.data(), int64_t(network.weights.size()),
                                  &alone(), tier.c_str(), &model) == EDGE_OK);
        require(edge_cache_create(model, &cache) == EDGE_OK);
    }
};

}  // namespace

bool accepts(Input input) {
    const uint8_t tier = input.take<uint8_t>() % 8, choice = input.take<uint8_t>();
    const int32_t type = choice & 4 ? EDGE_KV_INT4 : choice % 4;
    static Model *models[5][2][8];  // kept until the end
    Model *&made = models[type][choice >> 7][tier];
    if (made == nullptr) made = new Model(type, choice >> 7, tier_of(tier));
    edge_cache *const cache = made->cache;
    require(edge_cache_truncate(cache, 0) == EDGE_OK);

    // The pages that such a cache has, filled with what is left of the input, again and again.
    const int64_t length = input.size(input.below_or(context));
    const int64_t pages =
        choice & 64 ? input.below_or(3) : (std::clamp<int64_t>(length, 0, context) + 255) / 256;
    const int64_t bits = type == EDGE_KV_F32 ? 32 : type == EDGE_KV_INT8 ? 8 : type == EDGE_KV_INT4 ? 4 : 16;
    const bool scales = type == EDGE_KV_INT4 || type == EDGE_KV_INT8 || type == EDGE_KV_INT16;
    const int64_t row = Network::head_dim * bits / 8 + (scales ? 4 : 0);
    std::vector<uint8_t> memory(size_t(pages * 256 * 2 * Network::kv_heads * row) +
                                (choice & 32 ? input.take<uint8_t>() : 0));
    std::vector<uint8_t> pattern(std::min<size_t>(input.left(), 4096));
    input.take(pattern.data(), pattern.size());
    for (size_t i = 0; i < memory.size() && !pattern.empty(); ++i) memory[i] = pattern[i % pattern.size()];
    memory.shrink_to_fit();
    const uint8_t nothing = 0;
    const edge_status restored =
        edge_cache_restore(cache, length, memory.empty() ? &nothing : memory.data(), memory.size());
    require(edge_cache_length(cache) == (restored == EDGE_OK ? length : 0));
    if (restored != EDGE_OK) return false;
    size_t compared = 0;
    for (int64_t page = 0; page * EDGE_CACHE_PAGE < length; ++page) {
        const void *back = nullptr;
        uint64_t bytes = 0;
        require(edge_cache_page(cache, page, &back, &bytes) == EDGE_OK);
        require(std::memcmp(back, memory.data() + compared, size_t(bytes)) == 0);
        compared += size_t(bytes);
    }
    require(compared == memory.size());

    float logits[Network::vocab];
    const edge_status status = run_token(made->model, cache, 5, logits);
    require(status == EDGE_OK || status == EDGE_NOT_FINITE || (status == EDGE_CONTEXT && length == context));
    require(edge_cache_length(cache) == length + (status == EDGE_OK));
    for (const float logit : logits) require(status != EDGE_OK || std::isfinite(logit));
    return true;
}
