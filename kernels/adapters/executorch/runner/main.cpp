// edge_executorch MODEL.pte COUNT TOKEN...: runs a prompt of token ids and prints COUNT greedy ids after it.
//
// $EDGE_EXECUTORCH_LIBRARIES: libraries to load first, separated by colons, for example the one with our operators.
#include "runner.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

namespace {

int fail(const std::string &sentence) {
    std::fprintf(stderr, "%s\n", sentence.c_str());
    return 1;
}

constexpr int64_t most = 1 << 24;  // tokens, rows or ids

// A whole number from `least` to `most`; -1 for any other text.
int64_t number(const char *text, int64_t least) {
    char *end = nullptr;
    const long long value = std::strtoll(text, &end, 10);
    return *text == '\0' || *end != '\0' || value < least || value > most ? -1 : value;
}

// A constant of the program that is a size; 0 where it is none.
int64_t size_of(edge_et_program *program, const char *name) {
    int64_t value = 0;
    int32_t count = 0;
    const bool read = edge_et_constant(program, name, &value, 1, &count) == 0 && count == 1;
    return read && value >= 1 && value <= most ? value : 0;
}

// Logits after the last of `tokens`, which follow `start` rows; empty on failure.
std::vector<float> forward(edge_et_cache *cache, const std::vector<int64_t> &tokens, int64_t start,
                           int64_t vocab) {
    auto logits = std::vector<float>(size_t(vocab));
    const edge_et_input inputs[] = {{tokens.data(), 2, {1, int32_t(tokens.size())}}, {&start, 1, {1}}};
    edge_et_output output = {logits.data(), logits.size() * sizeof(float), 0};
    if (edge_et_run(cache, "forward", inputs, 2, &output, 1) != 0) return {};
    return logits;
}

}  // namespace

int main(int count, char **arguments) {
    if (count < 4) return fail("usage: edge_executorch MODEL.pte COUNT TOKEN...");
    if (const char *libraries = std::getenv("EDGE_EXECUTORCH_LIBRARIES")) {
        std::stringstream names(libraries);
        for (std::string name; std::getline(names, name, ':');) {
            if (dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) return fail(dlerror());
        }
    }
    std::ifstream file(arguments[1], std::ios::binary | std::ios::ate);
    if (!file) return fail(std::string("Cannot read '") + arguments[1] + "'.");
    const auto size = size_t(file.tellg());
    const std::unique_ptr<void, void (*)(void *)> memory(std::aligned_alloc(64, (size + 63) / 64 * 64),
                                                         std::free);
    file.seekg(0);
    if (!memory || !file.read(static_cast<char *>(memory.get()), std::streamsize(size))) {
        return fail(std::string("Cannot read '") + arguments[1] + "' into memory.");
    }
    edge_et_program *program = nullptr;
    edge_et_cache *cache = nullptr;
    if (edge_et_open(memory.get(), size, 0, &program) != 0) return fail(edge_et_error());
    const std::unique_ptr<edge_et_program, void (*)(edge_et_program *)> program_owner(program, edge_et_close);
    const int64_t vocab = size_of(program, "get_vocab_size"), longest = size_of(program, "get_max_seq_len"),
                  context = size_of(program, "get_max_context_len");
    if (vocab == 0 || longest == 0 || context == 0) {
        return fail("The program does not say its vocabulary, step and context; export the model again.");
    }
    if (edge_et_cache_create(program, &cache) != 0) return fail(edge_et_error());
    const std::unique_ptr<edge_et_cache, void (*)(edge_et_cache *)> cache_owner(cache, edge_et_cache_destroy);
    std::vector<int64_t> tokens;
    for (int i = 3; i < count; ++i) {
        tokens.push_back(number(arguments[i], 0));
        if (tokens.back() < 0) return fail(std::string("'") + arguments[i] + "' is not a token id.");
    }
    const int64_t wanted = number(arguments[2], 0);
    if (wanted < 0) return fail(std::string("'") + arguments[2] + "' is not a number of tokens.");
    if (int64_t(tokens.size()) + wanted > context) return fail("The context is too short.");
    int64_t start = 0;
    for (int64_t made = 0; made < wanted; ++made) {
        std::vector<float> logits;
        while (start < int64_t(tokens.size())) {
            const int64_t stop = std::min(start + longest, int64_t(tokens.size()));
            logits = forward(cache, {tokens.begin() + start, tokens.begin() + stop}, start, vocab);
            if (logits.empty()) return fail(edge_et_error());
            start = stop;
        }
        tokens.push_back(std::max_element(logits.begin(), logits.end()) - logits.begin());
        std::printf("%lld%c", (long long)tokens.back(), made + 1 == wanted ? '\n' : ' ');
    }
    return 0;
}
