// Reads the manifest, the header of the weights and decoder.json, and maps names to roles and layouts.
#include "bundle.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>

namespace tools {
namespace {

struct Role {
    const char *name;
    int32_t role;
};
const Role roles[] = {{"model.embed_tokens.weight", EDGE_EMBEDDING},
                      {"lm_head.weight", EDGE_HEAD},
                      {"model.norm.weight", EDGE_FINAL_NORM},
                      {"input_layernorm.weight", EDGE_ATTENTION_NORM},
                      {"self_attn.q_proj.weight", EDGE_Q},
                      {"self_attn.k_proj.weight", EDGE_K},
                      {"self_attn.v_proj.weight", EDGE_V},
                      {"self_attn.o_proj.weight", EDGE_O},
                      {"post_attention_layernorm.weight", EDGE_MLP_NORM},
                      {"mlp.gate_proj.weight", EDGE_GATE},
                      {"mlp.up_proj.weight", EDGE_UP},
                      {"mlp.down_proj.weight", EDGE_DOWN},
                      {"self_attn.q_proj.bias", EDGE_Q_BIAS},
                      {"self_attn.k_proj.bias", EDGE_K_BIAS},
                      {"self_attn.v_proj.bias", EDGE_V_BIAS},
                      {"self_attn.q_norm.weight", EDGE_Q_NORM},
                      {"self_attn.k_norm.weight", EDGE_K_NORM}};

struct Layout {
    const char *name;
    int32_t kind;
};
const Layout layouts[] = {{"f32.row", EDGE_F32},
                          {"f16.n16", EDGE_F16},
                          {"i8.n16k4", EDGE_INT8},
                          {"i4.n16k8", EDGE_INT4},
                          {"t2.n16k16", EDGE_TERNARY}};

constexpr int64_t most_size = 1 << 24, most_layers = 4096, most_head_dim = 1024, most_rows = 1 << 30;

using File = std::unique_ptr<FILE, int (*)(FILE *)>;

// Opens a regular file; anything else could have no end, or never begin.
File open_file(const std::string &path, uint64_t *bytes) {
    struct stat status;
    if (stat(path.c_str(), &status) != 0) {
        throw Error("Cannot read '" + path + "': is this the folder of a bundle?");
    }
    if (!S_ISREG(status.st_mode)) throw Error("'" + path + "' is not a file.");
    File file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) throw Error("Cannot read '" + path + "'.");
    *bytes = uint64_t(status.st_size);
    return file;
}

void read_exactly(const File &file, void *to, uint64_t bytes, const std::string &path) {
    if (std::fread(to, 1, size_t(bytes), file.get()) != bytes) throw Error("'" + path + "' is truncated.");
}

std::string read_text(const std::string &path) {
    constexpr uint64_t most_bytes = 16 << 20;  // as the parser takes
    uint64_t bytes = 0;
    const File file = open_file(path, &bytes);
    if (bytes > most_bytes) throw Error("'" + path + "' is too large: " + std::to_string(bytes) + " bytes.");
    std::string text(size_t(bytes), '\0');
    read_exactly(file, &text[0], bytes, path);
    return text;
}

Memory read_memory(const std::string &path) {
    uint64_t bytes = 0;
    const File file = open_file(path, &bytes);
    if (bytes == 0) return {};
    const std::shared_ptr<uint8_t> data = make_region(bytes);
    read_exactly(file, data.get(), bytes, path);
    return {data, bytes};
}

// Runs `body`; what is wrong in there is said of `what`.
template <class Body>
auto inside(const std::string &what, const Body &body) {
    try {
        return body();
    } catch (const Error &error) { throw Error(what + ": " + error.what()); }
}

edge_weight role_of(const std::string &name, int32_t layers) {
    edge_weight weight{};
    std::string role = name;
    const std::string prefix = "model.layers.";
    if (name.compare(0, prefix.size(), prefix) == 0) {
        const char *const start = name.data() + prefix.size(), *const end = name.data() + name.size();
        const auto number = std::from_chars(start, end, weight.layer);
        const bool known = number.ec == std::errc() && number.ptr < end && *number.ptr == '.';
        if (!known || weight.layer < 0 || weight.layer >= layers) {
            throw Error("it is of no layer; the model has " + std::to_string(layers) + ".");
        }
        role.assign(number.ptr + 1, end);
    }
    for (const Role &known : roles) {
        if (role == known.name) {
            weight.role = known.role;
            return weight;
        }
    }
    throw Error("it is not known; this program runs plain decoders only.");
}

// A whole number of an object, in a type that holds it.
template <class T>
T whole(const Json &object, const char *name, int64_t least, int64_t most) {
    return T(object.at(name).integer(name, least, most));
}

// The end of a layout's and of a scheme's name, as `.g32.min` and `-g32-min`.
std::string suffix_of(const edge_matrix &matrix, const std::string &separator) {
    if (matrix.kind == EDGE_F32 || matrix.kind == EDGE_F16) return "";
    const std::string group = matrix.group > 0 ? "g" + std::to_string(matrix.group) : "row";
    return separator + group + (matrix.minimum ? separator + "min" : "");
}

// Only the layout says what the kernels compute; what a kind of scheme means by its codes does not matter.
void read_layout(const Json &scheme, edge_matrix *matrix) {
    matrix->group = whole<int32_t>(scheme, "group", 0, most_rows);
    matrix->minimum = scheme.at("minimum").boolean("minimum");
    const std::string &stored = scheme.at("layout").text("layout");
    for (const Layout &layout : layouts) {
        matrix->kind = layout.kind;
        if (stored == layout.name + suffix_of(*matrix, ".") + ".v1") return;
    }
    throw Error("it has a layout that this program does not know; convert the model again.");
}

bool is_matrix(const edge_weight &weight) { return weight.matrix.kind != EDGE_F32; }

}  // namespace

std::shared_ptr<uint8_t> make_region(uint64_t bytes) {
    void *memory = nullptr;
    if (edge_region_create(bytes, &memory) != EDGE_OK) throw Error(edge_last_error());
    return {static_cast<uint8_t *>(memory), [bytes](uint8_t *region) { edge_region_destroy(region, bytes); }};
}

// In braces, so that they are read in this order.
Bundle::Bundle(const std::string &folder)
    : Bundle{read_text(folder + "/manifest.json"), read_memory(folder + "/weights.safetensors")} {}

Bundle::Bundle(const std::string &manifest, Memory file) : file_(std::move(file)) {
    const Json json = Json::parse(manifest, "manifest.json");
    inside("manifest.json", [&] {
        if (json.at("format").text("format") != "minicpm-edge-bundle" ||
            whole<int64_t>(json, "version", 0, INT64_MAX) != 1) {
            throw Error("this is not a manifest of version 1; convert the model again.");
        }
        name = json.at("source").text("source");
        read_config(json.at("config"));
    });
    read_weights(json);
}

void Bundle::read_config(const Json &json) {
    const auto size = [&](const char *field) { return whole<int32_t>(json, field, 1, most_size); };
    const auto number = [&](const char *field) { return json.at(field).number(field); };
    const auto or_one = [&](const char *field) { return json.at(field).is_null() ? 1.0 : number(field); };
    if (whole<int64_t>(json, "num_experts", 0, INT64_MAX) != 0) {
        throw Error("mixtures of experts can't be run.");
    }
    config.size = sizeof config;
    config.vocab_size = size("vocab_size");
    config.hidden_size = size("hidden_size");
    config.intermediate_size = size("intermediate_size");
    config.layers = whole<int32_t>(json, "num_hidden_layers", 1, most_layers);
    config.heads = size("num_attention_heads");
    config.kv_heads = size("num_key_value_heads");
    config.head_dim = whole<int32_t>(json, "head_dim", 1, most_head_dim);
    config.rms_norm_eps = float(number("rms_norm_eps"));
    config.embedding_scale = float(or_one("scale_emb"));
    config.residual_scale = json.at("scale_depth").is_null()
                                ? 1.0f
                                : float(number("scale_depth") / std::sqrt(double(config.layers)));
    config.logit_scale =
        json.at("dim_model_base").is_null() ? 1.0f : float(number("dim_model_base") / config.hidden_size);
    most_context = size("max_position_embeddings");
    tied_ = json.at("tie_word_embeddings").boolean("tie_word_embeddings");
    const double theta = json.at("rope").at("theta").number("theta");
    if (theta <= 0) throw Error("The field 'theta' should be above 0 and is not.");
    for (int32_t i = 0; i < config.head_dim / 2; ++i) {
        inverse_frequency_.push_back(float(std::pow(theta, -2.0 * i / config.head_dim)));
    }
    config.rope_scale = 1.0f;
    config.inverse_frequency = inverse_frequency_.data();
    layers_without_rope_.resize(size_t(config.layers));
    config.layers_without_rope = layers_without_rope_.data();
    for (const auto &[field, value] : json.members("config")) {  // these are left out where they say nothing
        if (field == "layers_without_rope") {
            for (const Json &layer : value.items("layers_without_rope")) {
                layers_without_rope_[size_t(layer.integer("layers_without_rope", 0, config.layers - 1))] = 1;
            }
        } else if (field == "sliding_window") {  // beyond it something else would have to be computed
            most_context = std::min(most_context, size("sliding_window"));
        }
    }
}

void Bundle::read_decoder(const std::string &folder) {
    const std::string path = folder + "/decoder.json";
    struct stat status;
    if (stat(path.c_str(), &status) != 0) {
        throw Error("'" + folder + "' has no decoder.json: make it with `edge export MODEL --to bundle`.");
    }
    read_decoder_text(read_text(path));
}

void Bundle::read_decoder_text(const std::string &text) {
    const Json json = Json::parse(text, "decoder.json");
    inside("decoder.json", [&] {
        if (json.at("format").text("format") != "minicpm-edge-decoder" ||
            whole<int64_t>(json, "version", 0, INT64_MAX) != 1) {
            throw Error("this is not a decoder of version 1; export the model again.");
        }
        most_context = whole<int32_t>(json, "context", 1, most_size);
        const Json &rope = json.at("rope");
        config.rope_scale = float(rope.at("scale").number("scale"));
        const Json::List &frequencies = rope.at("inverse_frequency").items("inverse_frequency");
        if (int64_t(frequencies.size()) != config.head_dim / 2) {
            throw Error("it does not belong to this bundle; export the model again.");
        }
        inverse_frequency_.clear();
        for (const Json &each : frequencies) {
            inverse_frequency_.push_back(float(each.number("inverse_frequency")));
        }
        config.inverse_frequency = inverse_frequency_.data();
        end_tokens.clear();
        for (const Json &each : json.at("end_tokens").items("end_tokens")) {
            end_tokens.push_back(int32_t(each.integer("end_tokens", 0, INT32_MAX)));
        }
        config.sparse = {};
        const Json &sparse = json.at("sparse");
        if (sparse.is_null()) return;
        const auto size = [&](const char *field) { return whole<int32_t>(sparse, field, 0, most_size); };
        config.sparse = {1,
                         size("kernel_size"),
                         size("kernel_stride"),
                         size("block_size"),
                         size("init_blocks"),
                         size("window_size"),
                         size("topk"),
                         whole<int32_t>(sparse, "dense_len", -1, most_size),
                         sparse.at("exact_lse").boolean("exact_lse")};
    });
}

// header: of weights.safetensors, whose data start at byte `first`.
edge_weight Bundle::read_weight(const std::string &tensor, const Json &entry, const Json &header,
                                uint64_t first) const {
    edge_weight weight = role_of(tensor, config.layers);
    edge_matrix &matrix = weight.matrix;
    read_layout(entry.at("scheme"), &matrix);
    const Json::List &shape = entry.at("shape").items("shape");
    if (shape.empty() || shape.size() > 2) throw Error("it has no usable shape.");
    matrix.rows = shape.size() == 2 ? shape[0].integer("shape", 1, most_rows) : 1;
    matrix.columns = shape.back().integer("shape", 1, most_rows);
    const Json::List &offsets = header.at(tensor).at("data_offsets").items("data_offsets");
    if (offsets.size() != 2) throw Error("it has no beginning and end in the file.");
    const int64_t end = offsets[1].integer("data_offsets", 0, int64_t(file_.bytes - first));
    const int64_t begin = offsets[0].integer("data_offsets", 0, end);
    if ((first + uint64_t(begin)) % 64 != 0) throw Error("it is not aligned; convert the model again.");
    matrix.data = file_.data.get() + first + begin;
    matrix.bytes = uint64_t(end - begin);
    // The kernels check the exact size later; a weight takes two bits at least.
    if (matrix.rows * matrix.columns > 4 * (end - begin)) throw Error("it is smaller than its shape needs.");
    return weight;
}

void Bundle::read_weights(const Json &manifest) {
    const int64_t wanted = inside("manifest.json", [&] {
        return whole<int64_t>(manifest.at("files").at("weights.safetensors"), "bytes", 0, INT64_MAX);
    });
    if (uint64_t(wanted) != file_.bytes) {
        throw Error("weights.safetensors has another size than its manifest says: copy the bundle again.");
    }
    uint64_t header_bytes = 0;
    if (file_.bytes < sizeof header_bytes) throw Error("weights.safetensors is truncated.");
    std::memcpy(&header_bytes, file_.data.get(), sizeof header_bytes);
    if (header_bytes > file_.bytes - sizeof header_bytes) throw Error("weights.safetensors is damaged.");
    const uint64_t first = sizeof header_bytes + header_bytes;
    const char *const text = reinterpret_cast<const char *>(file_.data.get()) + sizeof header_bytes;
    const Json header = Json::parse({text, size_t(header_bytes)}, "The header of weights.safetensors");

    std::map<std::string, uint64_t> sizes;
    for (const auto &entry : manifest.at("tensors").members("tensors")) {
        inside("Tensor '" + entry.first + "'", [&] {
            const edge_weight weight = read_weight(entry.first, entry.second, header, first);
            weights.push_back(weight);
            const std::string &kind = entry.second.at("scheme").at("kind").text("kind");
            if (weight.role < EDGE_ATTENTION_NORM || !is_matrix(weight)) return;
            sizes[kind + suffix_of(weight.matrix, "-")] += weight.matrix.bytes;
        });
    }
    const auto largest = std::max_element(sizes.begin(), sizes.end(),
                                          [](const auto &a, const auto &b) { return a.second < b.second; });
    if (largest == sizes.end()) throw Error("The bundle has no weights.");
    quantize = largest->first;
}

Cost Bundle::cost(bool int8_activations) const {
    Cost cost;
    int64_t floats = 0;
    for (const edge_weight &weight : weights) {
        const edge_matrix &m = weight.matrix;
        const bool used = weight.role != EDGE_EMBEDDING || tied_;
        const int64_t operations = is_matrix(weight) && used ? m.rows * m.columns : 0;
        cost.resident += int64_t(m.bytes);
        cost.streamed += used ? int64_t(m.bytes) : 0;
        (weight.role == EDGE_EMBEDDING || weight.role == EDGE_HEAD ? cost.head : cost.body) += operations;
        floats += m.kind == EDGE_F16 ? operations : 0;
    }
    cost.integer = int8_activations && floats * 2 < cost.body + cost.head;
    cost.attention = int64_t(2) * config.layers * config.heads * config.head_dim;
    return cost;
}

}  // namespace tools
