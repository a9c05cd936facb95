// Reads the manifest, the header of the weights and decoder.json, and maps names to roles and layouts.
#include "bundle.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>

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
                      {"mlp.down_proj.weight", EDGE_DOWN}};

struct Layout {
    const char *name;
    int32_t kind;
};
const Layout layouts[] = {{"f32.row", EDGE_F32},
                          {"f16.n16", EDGE_F16},
                          {"i8.n16k4", EDGE_INT8},
                          {"i4.n16k8", EDGE_INT4},
                          {"t2.n16k16", EDGE_TERNARY}};

using File = std::unique_ptr<FILE, int (*)(FILE *)>;

File open_file(const std::string &path) {
    File file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) throw Error("Cannot read '" + path + "': is this the folder of a bundle?");
    return file;
}

uint64_t size_of(const std::string &path) {
    struct stat status;
    if (stat(path.c_str(), &status) != 0) throw Error("Cannot read '" + path + "'.");
    return uint64_t(status.st_size);
}

void read_exactly(FILE *file, void *to, uint64_t bytes, const std::string &path) {
    if (std::fread(to, 1, size_t(bytes), file) != bytes) throw Error("'" + path + "' is truncated.");
}

edge_weight weight_of(const std::string &name) {
    edge_weight weight{};
    std::string role = name;
    const std::string prefix = "model.layers.";
    if (name.compare(0, prefix.size(), prefix) == 0) {
        const size_t dot = name.find('.', prefix.size());
        if (dot == std::string::npos) {
            throw Error("The bundle has a tensor '" + name + "' that is not known.");
        }
        weight.layer = std::atoi(name.c_str() + prefix.size());
        role = name.substr(dot + 1);
    }
    for (const Role &known : roles) {
        if (role == known.name) {
            weight.role = known.role;
            return weight;
        }
    }
    throw Error("The bundle has a tensor '" + name + "' that is not known.");
}

// The end of a layout's and of a scheme's name, as `.g32.min` and `-g32-min`.
std::string suffix_of(const edge_matrix &matrix, const std::string &separator) {
    if (matrix.kind == EDGE_F32 || matrix.kind == EDGE_F16) return "";
    const std::string group = matrix.group > 0 ? "g" + std::to_string(matrix.group) : "row";
    return separator + group + (matrix.minimum ? separator + "min" : "");
}

// Only the layout says what the kernels compute; what a kind of scheme means by its codes does not matter.
void read_layout(const Json &scheme, const std::string &name, edge_matrix *matrix) {
    matrix->group = int32_t(scheme.at("group").integer());
    matrix->minimum = scheme.at("minimum").boolean();
    for (const Layout &layout : layouts) {
        matrix->kind = layout.kind;
        if (scheme.at("layout").text() == layout.name + suffix_of(*matrix, ".") + ".v1") return;
    }
    throw Error("Tensor '" + name +
                "' has a layout that this program does not know; convert the model again.");
}

bool is_matrix(const edge_weight &weight) { return weight.matrix.kind != EDGE_F32; }

}  // namespace

std::string read_file(const std::string &path) {
    const File file = open_file(path);
    std::string text;
    char block[1 << 16];
    for (size_t count; (count = std::fread(block, 1, sizeof block, file.get())) > 0;) {
        text.append(block, count);
    }
    return text;
}

Bundle::Bundle(const std::string &folder) {
    const std::string path = folder + "/manifest.json";
    const Json manifest = Json::parse(read_file(path), "'" + path + "'");
    if (manifest.at("format").text() != "minicpm-edge-bundle" || manifest.at("version").integer() != 1) {
        throw Error("'" + path + "' is not a manifest of version 1; convert the model again.");
    }
    name = manifest.at("source").text();
    read_config(manifest.at("config"));
    read_weights(folder, manifest);
}

Bundle::~Bundle() { edge_region_destroy(memory_, bytes_); }

void Bundle::read_config(const Json &json) {
    const auto whole = [&](const char *field) { return int32_t(json.at(field).integer()); };
    const auto or_one = [&](const char *field) {
        return json.at(field).is_null() ? 1.0 : json.at(field).number();
    };
    if (whole("num_experts") != 0) throw Error("Mixtures of experts can't be run.");
    config.size = sizeof config;
    config.vocab_size = whole("vocab_size");
    config.hidden_size = whole("hidden_size");
    config.intermediate_size = whole("intermediate_size");
    config.layers = whole("num_hidden_layers");
    config.heads = whole("num_attention_heads");
    config.kv_heads = whole("num_key_value_heads");
    config.head_dim = whole("head_dim");
    config.rms_norm_eps = float(json.at("rms_norm_eps").number());
    config.embedding_scale = float(or_one("scale_emb"));
    if (config.layers < 1 || config.hidden_size < 1 || config.head_dim < 1) {
        throw Error("The config is damaged.");
    }
    config.residual_scale = json.at("scale_depth").is_null()
                                ? 1.0f
                                : float(or_one("scale_depth") / std::sqrt(double(config.layers)));
    config.logit_scale =
        json.at("dim_model_base").is_null() ? 1.0f : float(or_one("dim_model_base") / config.hidden_size);
    most_context = whole("max_position_embeddings");
    tied_ = json.at("tie_word_embeddings").boolean();
    const double theta = json.at("rope").at("theta").number();
    for (int32_t i = 0; i < config.head_dim / 2; ++i) {
        inverse_frequency_.push_back(float(std::pow(theta, -2.0 * i / config.head_dim)));
    }
    config.rope_scale = 1.0f;
    config.inverse_frequency = inverse_frequency_.data();
}

void Bundle::read_decoder(const std::string &folder) {
    const std::string path = folder + "/decoder.json";
    struct stat status;
    if (stat(path.c_str(), &status) != 0) {
        throw Error("'" + folder + "' has no decoder.json: make it with `edge export MODEL --to bundle`.");
    }
    const Json json = Json::parse(read_file(path), "'" + path + "'");
    if (json.at("format").text() != "minicpm-edge-decoder" || json.at("version").integer() != 1) {
        throw Error("'" + path + "' is not a decoder of version 1; export the model again.");
    }
    most_context = int32_t(json.at("context").integer());
    const Json &rope = json.at("rope");
    config.rope_scale = float(rope.at("scale").number());
    inverse_frequency_.clear();
    for (const Json &each : rope.at("inverse_frequency").items()) {
        inverse_frequency_.push_back(float(each.number()));
    }
    if (int64_t(inverse_frequency_.size()) != config.head_dim / 2) {
        throw Error("'" + path + "' does not belong to this bundle; export the model again.");
    }
    config.inverse_frequency = inverse_frequency_.data();
    for (const Json &each : json.at("end_tokens").items()) end_tokens.push_back(int32_t(each.integer()));
    const Json &sparse = json.at("sparse");
    if (sparse.is_null()) return;
    const auto whole = [&](const char *field) { return int32_t(sparse.at(field).integer()); };
    config.sparse = {1,
                     whole("kernel_size"),
                     whole("kernel_stride"),
                     whole("block_size"),
                     whole("init_blocks"),
                     whole("window_size"),
                     whole("topk"),
                     whole("dense_len"),
                     sparse.at("exact_lse").boolean()};
}

void Bundle::read_weights(const std::string &folder, const Json &manifest) {
    const std::string path = folder + "/weights.safetensors";
    bytes_ = size_of(path);
    if (int64_t(bytes_) != manifest.at("files").at("weights.safetensors").at("bytes").integer()) {
        throw Error("'" + path + "' has another size than its manifest says: copy the bundle again.");
    }
    if (edge_region_create(bytes_, &memory_) != EDGE_OK) throw Error(edge_last_error());
    const File file = open_file(path);
    read_exactly(file.get(), memory_, bytes_, path);
    const uint8_t *const data = static_cast<const uint8_t *>(memory_);
    uint64_t header_bytes = 0;
    if (bytes_ < 8) throw Error("'" + path + "' is truncated.");
    std::memcpy(&header_bytes, data, 8);
    if (header_bytes > bytes_ - 8) throw Error("'" + path + "' is damaged.");
    const Json header =
        Json::parse(std::string(reinterpret_cast<const char *>(data) + 8, size_t(header_bytes)),
                    "The header of '" + path + "'");
    const uint64_t first = 8 + header_bytes;

    std::map<std::string, uint64_t> sizes;
    for (const auto &entry : manifest.at("tensors").members()) {
        edge_weight weight = weight_of(entry.first);
        edge_matrix &matrix = weight.matrix;
        const Json &scheme = entry.second.at("scheme");
        read_layout(scheme, entry.first, &matrix);
        const std::vector<Json> &shape = entry.second.at("shape").items();
        if (shape.empty() || shape.size() > 2) {
            throw Error("Tensor '" + entry.first + "' has no usable shape.");
        }
        matrix.rows = shape.size() == 2 ? shape[0].integer() : 1;
        matrix.columns = shape.back().integer();
        const std::vector<Json> &place = header.at(entry.first).at("data_offsets").items();
        const int64_t begin = place.at(0).integer(), end = place.at(1).integer();
        if (begin < 0 || end < begin || uint64_t(end) > bytes_ - first) {
            throw Error("Tensor '" + entry.first + "' lies outside '" + path + "'.");
        }
        if ((first + uint64_t(begin)) % 64 != 0) {
            throw Error("Tensor '" + entry.first + "' of '" + path +
                        "' is not aligned; convert the model again.");
        }
        matrix.data = data + first + begin;
        matrix.bytes = uint64_t(end - begin);
        if (weight.role >= EDGE_ATTENTION_NORM && shape.size() == 2) {
            sizes[scheme.at("kind").text() + suffix_of(matrix, "-")] += matrix.bytes;
        }
        weights.push_back(weight);
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
