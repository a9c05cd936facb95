// Opens a bundle without Python: its manifest, and its weights in memory as the decoder wants them.
#pragma once

#include <cstdint>
#include <memory>
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

// The content of weights.safetensors, at a multiple of 64 bytes.
struct Memory {
    std::shared_ptr<const uint8_t> data;
    uint64_t bytes = 0;
};

// Zeroed memory in huge pages where the system has them; throws Error.
std::shared_ptr<uint8_t> make_region(uint64_t bytes);

class Bundle {
   public:
    // Throws Error with a sentence. Sizes and layouts are checked, checksums are not.
    // Attention is dense, and rotary frequencies are plain ones: enough to measure time. read_decoder sets both.
    explicit Bundle(const std::string &folder);
    // The same of what its files hold.
    Bundle(const std::string &manifest, Memory file);
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
    void read_decoder_text(const std::string &text);

   private:
    void read_config(const Json &manifest);
    void read_weights(const Json &manifest);
    edge_weight read_weight(const std::string &tensor, const Json &entry, const Json &header,
                            uint64_t first) const;

    const Memory file_;
    bool tied_ = false;
    std::vector<float> inverse_frequency_;
    std::vector<uint8_t> layers_without_rope_;
};

}  // namespace tools
