// decoder.json, beside a bundle that is whole.
#include "bundle.h"
#include "fuzz.h"

namespace {

const char *const manifest = R"({"format": "minicpm-edge-bundle", "version": 1, "source": "x", "config":
    {"num_experts": 0, "vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-5, "scale_emb": 1,
     "scale_depth": null, "dim_model_base": null, "max_position_embeddings": 64, "tie_word_embeddings": true,
     "rope": {"theta": 10000}}, "files": {"weights.safetensors": {"bytes": 1152}}, "tensors":
    {"model.layers.0.self_attn.k_proj.weight": {"shape": [16, 32], "scheme":
        {"kind": "f16", "group": 0, "minimum": false, "layout": "f16.n16.v1"}}}})";
const char *const header = R"({"model.layers.0.self_attn.k_proj.weight": {"data_offsets": [0, 1024]}})";

tools::Memory weights() {
    constexpr uint64_t header_bytes = 120, bytes = 8 + header_bytes + 1024;
    const std::shared_ptr<uint8_t> data(
        static_cast<uint8_t *>(operator new(bytes, std::align_val_t(64))),
        [](uint8_t *memory) { operator delete(memory, std::align_val_t(64)); });
    std::memset(data.get(), ' ', bytes);
    std::memcpy(data.get(), &header_bytes, 8);
    std::memcpy(data.get() + 8, header, std::strlen(header));
    return {data, bytes};
}

}  // namespace

bool accepts(Input input) {
    static const tools::Memory file = weights();
    tools::Bundle bundle(manifest, file);
    try {
        bundle.read_decoder_text(input.text(input.left()));
        require(bundle.most_context > 0 && bundle.config.inverse_frequency != nullptr);
        for (const int32_t token : bundle.end_tokens) require(token >= 0);
        return true;
    } catch (const tools::Error &) { return false; }
}
