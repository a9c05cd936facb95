// Feeds, times and rolls back caches: the protocol of edge/measure/profile/measure.py.
#include "runner.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>

namespace tools {
namespace {

constexpr int32_t batch_tokens = 256, seed_rows = 64, warm_up = 4;  // as edge/measure/profile/measure.py

edge_config config_of(const Bundle &bundle, const Options &options, int32_t context, int32_t batch) {
    edge_config config = bundle.config;
    config.context = context;
    config.max_batch = batch;
    config.activations = EDGE_ACTIVATIONS_INT8;
    config.kv_type = kv_types.at(options.kv_type).type;
    return config;
}

}  // namespace

const std::map<std::string, KvType> kv_types = {{"int16", {EDGE_KV_INT16, 16, 4}},
                                                {"float16", {EDGE_KV_F16, 16, 0}},
                                                {"float32", {EDGE_KV_F32, 32, 0}},
                                                {"int8", {EDGE_KV_INT8, 8, 4}},
                                                {"int4", {EDGE_KV_INT4, 4, 4}}};

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

int guarded(const std::function<void()> &body) {
    std::string sentence;
    try {
        body();
        return 0;
    } catch (const Error &error) { sentence = error.what(); } catch (const std::bad_alloc &) {
        sentence = "There is not enough memory.";
    } catch (const std::exception &error) {
        sentence =
            std::string("This program has a fault of its own (") + error.what() + "); please report it.";
    }
    std::fprintf(stderr, "Error: %s\n", sentence.c_str());
    return 1;
}

Owner<edge_pool> make_pool(int32_t threads) {
    edge_pool *pool = nullptr;
    check(edge_pool_create(threads, &pool));
    return {pool, edge_pool_destroy};
}

Owner<edge_model> make_model(const edge_config &config, const std::vector<edge_weight> &weights,
                             const edge_parallel &parallel) {
    edge_model *model = nullptr;
    check(edge_model_create(&config, weights.data(), int64_t(weights.size()), &parallel, forced_tier(),
                            &model));
    return {model, edge_model_destroy};
}

Owner<edge_cache> make_cache(const edge_model *model) {
    edge_cache *cache = nullptr;
    check(edge_cache_create(model, &cache));
    return {cache, edge_cache_destroy};
}

Runner::Runner(const Bundle &bundle, const Options &options, int32_t threads, int32_t context)
    : options_(options),
      batch_(std::min(batch_tokens, context)),
      pool_(make_pool(threads)),
      parallel_(edge_pool_parallel(pool_.get())),
      model_(make_model(config_of(bundle, options, context, batch_), bundle.weights, parallel_)),
      logits_(size_t(bundle.config.vocab_size)) {
    std::minstd_rand random(1);
    for (int32_t i = 0; i < context; ++i) {
        tokens_.push_back(int32_t(random() % uint32_t(bundle.config.vocab_size)));
    }
}

int64_t Runner::cached_rows() const {
    int64_t rows = 0;
    for (const auto &cache : caches_) rows += edge_cache_length(cache.second.get());
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
    edge_step step{};
    step.size = sizeof step;
    step.cache = cache;
    step.n = n;
    step.tokens = tokens;
    step.logits_count = logits;
    check(edge_forward(model_.get(), &step, 1, logits_.data()));
}

int32_t Runner::sample() {
    edge_sampling sampling{};
    sampling.size = sizeof sampling;
    sampling.temperature = 0.8f;
    sampling.top_p = 0.8f;
    sampling.typical_p = sampling.repetition_penalty = 1.0f;
    edge_sample_result result;
    edge_draw draw{};
    draw.size = sizeof draw;
    draw.logits = logits_.data();
    draw.vocab_size = int32_t(logits_.size());
    draw.index = drawn_++;
    check(edge_sample(&sampling, &draw, &result));
    return result.token;
}

edge_cache *Runner::cache_at(int32_t depth) {
    const auto found = caches_.find(depth);
    if (found != caches_.end()) return found->second.get();
    Owner<edge_cache> made = make_cache(model());
    edge_cache *const cache = made.get();
    if (depth > 0) feed(cache, options_.fill == "synthetic" ? std::min(depth, seed_rows) : depth);
    if (depth > edge_cache_length(cache)) check(edge_cache_repeat(cache, depth));
    caches_.emplace(depth, std::move(made));
    return cache;
}

}  // namespace tools
