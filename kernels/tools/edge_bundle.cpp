// Bundle behind a C interface: nothing is thrown across it.
#include "edge_bundle.h"

#include <algorithm>
#include <memory>
#include <new>
#include <string>

#include "bundle.h"

namespace tools {
namespace {

constexpr int32_t batch_tokens = 256;

thread_local std::string last_error;

// What C sees, and behind it what it points into.
struct Opened : edge_bundle {
    explicit Opened(const std::string &folder) : edge_bundle{}, bundle(folder) {
        bundle.read_decoder(folder);
        config = bundle.config;
        config.context = bundle.most_context;
        config.max_batch = std::min(batch_tokens, config.context);
        config.activations = EDGE_ACTIVATIONS_INT8;
        config.kv_type = EDGE_KV_F16;
        weights = bundle.weights.data();
        weight_count = int64_t(bundle.weights.size());
        end_tokens = bundle.end_tokens.data();
        end_token_count = int64_t(bundle.end_tokens.size());
    }
    Bundle bundle;
};

}  // namespace
}  // namespace tools

const edge_bundle *edge_bundle_open(const char *folder) {
    try {
        return std::make_unique<tools::Opened>(folder).release();
    } catch (const std::bad_alloc &) {
        tools::last_error = "There is not enough memory.";
    } catch (const std::exception &error) { tools::last_error = error.what(); }
    return nullptr;
}

const char *edge_bundle_error() { return tools::last_error.c_str(); }

void edge_bundle_close(const edge_bundle *bundle) { delete static_cast<const tools::Opened *>(bundle); }
