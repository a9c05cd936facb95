// What is measured, and one executor that measures it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bundle.h"
#include "edge.h"

namespace tools {

struct KvType {
    edge_kv_type type;
    int64_t element_bits, scale_bytes;  // of a number, and beside every row of a head
};
extern const std::map<std::string, KvType> kv_types;  // by name

struct Options {
    std::string folder, model, fill = "prefill", kv_type = "float16";
    std::vector<int32_t> threads{0}, prompt{512}, depth{0};
    int32_t generate = 64, repeat = 5;
};

struct Test {
    bool decode;
    int32_t tokens, depth;
};

struct Measured {
    std::vector<double> seconds, token_seconds;
    int64_t peak_memory = 0;
};

double now();  // seconds on the monotonic clock
void check(edge_status status);
const char *forced_tier();  // $EDGE_CPU, or nullptr for the best

// Runs a program's `body`; returns its exit status, with one sentence on stderr where it fails.
int guarded(const std::function<void()> &body);

template <class T>
using Owner = std::unique_ptr<T, void (*)(T *)>;

// What libedge makes, owned; each throws Error.
Owner<edge_pool> make_pool(int32_t threads);
Owner<edge_model> make_model(const edge_config &config, const std::vector<edge_weight> &weights,
                             const edge_parallel &parallel);
Owner<edge_cache> make_cache(const edge_model *model);

// One number of threads over the shared weights, with a KV cache for every depth.
class Runner {
   public:
    Runner(const Bundle &bundle, const Options &options, int32_t threads, int32_t context);
    Runner(const Runner &) = delete;

    int32_t batch() const { return batch_; }
    int64_t cached_rows() const;

    // Fills the cache and warms up, which does not count.
    void prepare(const Test &test);
    // One measurement of it.
    void measure(const Test &test, Measured *out);

    const edge_parallel &parallel() const { return parallel_; }
    const edge_model *model() const { return model_.get(); }

   private:
    std::vector<double> run(edge_cache *cache, const Test &test);
    void feed(edge_cache *cache, int32_t count);
    void forward(edge_cache *cache, const int32_t *tokens, int32_t n, bool logits);
    int32_t sample();
    edge_cache *cache_at(int32_t depth);

    const Options &options_;
    const int32_t batch_;
    const Owner<edge_pool> pool_;  // outlives the model, as the model outlives its caches
    const edge_parallel parallel_;
    const Owner<edge_model> model_;
    std::map<int32_t, Owner<edge_cache>> caches_;
    std::vector<int32_t> tokens_;
    std::vector<float> logits_;
    uint64_t drawn_ = 0;
};

}  // namespace tools
