// A bundle: the number of bytes of its manifest, the manifest, and weights.safetensors.
#include "bundle.h"

#include "fuzz.h"

bool accepts(Input input) {
    const std::string manifest = input.text(input.take<uint32_t>());
    const size_t bytes = input.left();
    // Of exactly this size, so that a read behind it is seen.
    const std::shared_ptr<uint8_t> data(
        static_cast<uint8_t *>(operator new(bytes, std::align_val_t(64))),
        [](uint8_t *memory) { operator delete(memory, std::align_val_t(64)); });
    input.take(data.get(), bytes);
    try {
        const tools::Bundle bundle(manifest, {data, bytes});
        require(!bundle.weights.empty() && bundle.config.vocab_size > 0 && bundle.most_context > 0);
        for (const edge_weight &weight : bundle.weights) {
            const auto *const start = static_cast<const uint8_t *>(weight.matrix.data);
            require(start >= data.get() && start + weight.matrix.bytes <= data.get() + bytes);
            require(weight.layer >= 0 && weight.layer < bundle.config.layers);
        }
        require(bundle.cost(true).resident >= 0);
        return true;
    } catch (const tools::Error &) { return false; }
}
