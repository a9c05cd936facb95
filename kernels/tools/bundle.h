// Opens a bundle without Python: its manifest, and its weights in memory as the decoder wants them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "edge.h"
#include "json.h"

namespace tools {

// What one token costs; the same arithmetic as edge/measure/profile/cost.py.
struct Cost {
    int64_t resident = 0, streamed = 0;  // bytes
    int64_t body = 0, head = 0;          // multiply-adds per token
    bool integer = false;
    int64_t attention = 0;  // multiply-adds per token and position
};

class Bundle {
   public:
    // Throws Error with a sentence. Sizes and layouts are checked, checksums are not.
    // Attention is dense, and rotary frequencies are plain ones: enough to measure time. read_decoder sets both.
    explicit Bundle(const std::string &folder);
    ~Bundle();
    Bundle(const Bundle &) = delete;

    edge_config config{};  // sizes and scales; the caller sets context, max_batch, activations and kv_type
    std::vector<edge_weight> weights;
    std::string name, quantize;  // of most of the weights in the layers
    int32_t most_context = 0;

    std::vector<int32_t> end_tokens;

    Cost cost(bool int8_activations) const;

    // What the export to `bundle` resolved: decoder.json, with the model's own rotary frequencies, the constants of
    // sparse attention, the context and the end tokens. Throws Error.
    void read_decoder(const std::string &folder);

   private:
    void read_config(const Json &manifest);
    void read_weights(const std::string &folder, const Json &manifest);

    void *memory_ = nullptr;
    uint64_t bytes_ = 0;
    bool tied_ = false;
    std::vector<float> inverse_frequency_;
};

std::string read_file(const std::string &path);

}  // namespace tools
