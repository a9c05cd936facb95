// Feeds, times and rolls back caches: the protocol of edge/measure/profile/measure.py.
#include "runner.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>

namespace tools {
namespace {

constexpr int32_t batch_tokens = 256, seed_rows = 64, warm_up = 4;  // as edge/measure/profile/measure.py

}  // namespace

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void check(edge_status status) {
    if (status != EDGE_OK) throw Error(edge_last_error());
}

const char *forced_tier() {
    const char *const tier = std::getenv("EDGE_CPU");
    return tier != nullptr && *tier != '\0' ? tier : nullptr;
}

Runner::Runner(const Bundle &bundle, const Options &options, int32_t threads, int32_t context)
    : options_(options), batch_(std::min(batch_tokens, context)), logits_(size_t(bundle.config.vocab_size)) {
    check(edge_pool_create(threads, &pool_));
    parallel = edge_pool_parallel(pool_);
    edge_config config = bundle.config;
    config.context = context;
    config.max_batch = batch_;
    config.activations = EDGE_ACTIVATIONS_INT8;
    config.kv_type = options.kv_type == "float32" ? EDGE_KV_F32 : EDGE_KV_F16;
    check(edge_model_create(&config, bundle.weights.data(), int64_t(bundle.weights.size()), &parallel,
                            forced_tier(), &model));
    std::minstd_rand random(1);
    for (int32_t i = 0; i < context; ++i) tokens_.push_back(int32_t(random() % uint32_t(config.vocab_size)));
}

Runner::~Runner() {
    for (const auto &cache : caches_) edge_cache_destroy(cache.second);
    edge_model_destroy(model);
    edge_pool_destroy(pool_);
}

int64_t Runner::cached_rows() const {
    int64_t rows = 0;
    for (const auto &cache : caches_) rows += edge_cache_length(cache.second);
    return rows;
}

void Runner::prepare(const Test &test) {
    run(cache_at(test.depth),
        {test.decode, std::min(test.tokens, test.decode ? warm_up : batch_), test.depth});
}

void Runner::measure(const Test &test, Measured *out) {
    edge_cache *const cache = cache_at(test.depth);
    const double start = now();
    const std::vector<double> single = run(cache, test);
    out->seconds.push_back(now() - start);
    out->token_seconds.insert(out->token_seconds.end(), single.begin(), single.end());
}

std::vector<double> Runner::run(edge_cache *cache, const Test &test) {
    std::vector<double> times;
    if (test.decode) {
        int32_t token = tokens_[0];
        for (int32_t i = 0; i < test.tokens; ++i) {
            const double start = now();
            forward(cache, &token, 1, true);
            token = sample();
            times.push_back(now() - start);
        }
    } else {
        feed(cache, test.tokens);
        sample();
    }
    check(edge_cache_truncate(cache, test.depth));
    return times;
}

void Runner::feed(edge_cache *cache, int32_t count) {
    for (int32_t start = 0; start < count; start += batch_) {
        const int32_t n = std::min(batch_, count - start);
        forward(cache, &tokens_[size_t(start)], n, start + n == count);
    }
}

void Runner::forward(edge_cache *cache, const int32_t *tokens, int32_t n, bool logits) {
    edge_batch batch{};
    batch.size = sizeof batch;
    batch.n = n;
    batch.tokens = tokens;
    batch.logits_count = logits;
    batch.logits = logits_.data();
    check(edge_forward(model, cache, &batch));
}

int32_t Runner::sample() {
    edge_sampling sampling{};
    sampling.size = sizeof sampling;
    sampling.temperature = 0.8f;
    sampling.top_p = 0.8f;
    sampling.typical_p = sampling.repetition_penalty = 1.0f;
    edge_sample_result result;
    const double random = std::uniform_real_distribution<double>()(random_);
    check(edge_sample(logits_.data(), int32_t(logits_.size()), &sampling, nullptr, 0, nullptr, nullptr, 0,
                      random, 0, &result));
    return result.token;
}

edge_cache *Runner::cache_at(int32_t depth) {
    edge_cache *&cache = caches_[depth];
    if (cache != nullptr) return cache;
    check(edge_cache_create(model, &cache));
    if (depth > 0) feed(cache, options_.fill == "synthetic" ? std::min(depth, seed_rows) : depth);
    if (depth > edge_cache_length(cache)) check(edge_cache_repeat(cache, depth));
    return cache;
}

}  // namespace tools
