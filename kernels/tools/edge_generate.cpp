// edge_generate FOLDER COUNT TOKEN...: runs a prompt of token ids through an exported bundle and prints at most COUNT
// greedy ids after it, ending with an end token. It shows all that an app needs to do, and nothing else.
//
// FOLDER is what `edge export MODEL --to bundle` wrote. $EDGE_CPU chooses a kernel tier.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "bundle.h"
#include "runner.h"

namespace tools {
namespace {

constexpr int32_t batch_tokens = 256;

int32_t number(const char *text) {
    char *end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < 0 || value > INT32_MAX) {
        throw Error("'" + std::string(text) + "' is not a whole number of 0 or more.");
    }
    return int32_t(value);
}

// Logits after the last of `tokens`, which continue the cache.
void forward(edge_model *model, edge_cache *cache, const std::vector<int32_t> &tokens,
             std::vector<float> *logits) {
    for (size_t start = 0; start < tokens.size(); start += size_t(batch_tokens)) {
        edge_step step{};
        step.size = sizeof step;
        step.cache = cache;
        step.n = int32_t(std::min(tokens.size() - start, size_t(batch_tokens)));
        step.tokens = &tokens[start];
        step.logits_count = start + size_t(step.n) == tokens.size();
        check(edge_forward(model, &step, 1, logits->data()));
    }
}

void run(int count, char **arguments) {
    if (count < 4) throw Error("usage: edge_generate FOLDER COUNT TOKEN...");
    const int32_t wanted = number(arguments[2]);
    std::vector<int32_t> tokens;
    for (int i = 3; i < count; ++i) tokens.push_back(number(arguments[i]));
    Bundle bundle(arguments[1]);
    bundle.read_decoder(arguments[1]);
    if (int64_t(tokens.size()) + wanted > bundle.most_context) {
        throw Error("The prompt and " + std::to_string(wanted) +
                    " tokens after it are longer than the context of " + std::to_string(bundle.most_context) +
                    " that the bundle was exported for.");
    }
    edge_config config = bundle.config;
    config.context = bundle.most_context;
    config.max_batch = std::min(batch_tokens, config.context);
    config.activations = EDGE_ACTIVATIONS_INT8;
    config.kv_type = EDGE_KV_F16;

    const Owner<edge_pool> pool = make_pool(0);
    const edge_parallel parallel = edge_pool_parallel(pool.get());
    const Owner<edge_model> model = make_model(config, bundle.weights, parallel);
    const Owner<edge_cache> cache = make_cache(model.get());

    std::vector<float> logits(size_t(config.vocab_size));
    const std::vector<int32_t> &ends = bundle.end_tokens;
    for (int32_t made = 0; made < wanted; ++made) {
        forward(model.get(), cache.get(), tokens, &logits);
        const auto best = int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
        std::printf("%d\n", best);
        std::fflush(stdout);
        if (std::find(ends.begin(), ends.end(), best) != ends.end()) return;
        tokens = {best};
    }
}

}  // namespace
}  // namespace tools

int main(int count, char **arguments) {
    return tools::guarded([&] { tools::run(count, arguments); });
}
