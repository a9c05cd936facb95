// Loads programs and methods through ExecuTorch's C++ interface, and gives every cache its own memory for the rows.
#include "runner.h"

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

// The wheel has this library but not its header.
namespace executorch::extension::threadpool {
class ThreadPool {
   public:
    size_t get_thread_count() const;
    bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool *get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::BufferDataLoader;
using executorch::extension::MallocMemoryAllocator;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::HierarchicalAllocator;
using executorch::runtime::MemoryManager;
using executorch::runtime::Method;
using executorch::runtime::Program;
using executorch::runtime::Span;

thread_local std::string last_error;

int fail(const std::string &sentence) {
    last_error = sentence;
    return 1;
}

// XNNPACK packs the weights of a method when it is loaded. Caches load methods of their own; this lets them share
// what was packed. A runtime without XNNPACK has nothing to set.
void share_packed_weights() {
    executorch::runtime::BackendOptions<1> options;
    if (options.set_option("weight_cache_enabled", true) == Error::Ok) {
        static_cast<void>(executorch::runtime::set_option("XnnpackBackend", options.view()));
    }
}

// Zeros that the system commits when they are touched.
struct Memory {
    std::unique_ptr<uint8_t, void (*)(void *)> bytes{nullptr, std::free};
    size_t size = 0;

    bool allocate(size_t wanted) {
        constexpr size_t alignment = 64;
        size = wanted;
        // calloc leaves large pieces untouched; room to align them by hand.
        bytes.reset(static_cast<uint8_t *>(std::calloc(1, wanted + alignment)));
        return bytes != nullptr;
    }

    uint8_t *start() const {
        const auto address = reinterpret_cast<uintptr_t>(bytes.get());
        return bytes.get() + (64 - address % 64) % 64;
    }
};

constexpr size_t mutable_buffers = 1;  // index of the planned memory that holds the KV cache

// What a program and its caches share; it lives as long as any of them.
struct State {
    std::unique_ptr<BufferDataLoader> loader;
    std::optional<Program> program;
    std::map<std::string, std::vector<size_t>> planned;  // method -> bytes of each of its memories
    std::vector<size_t> largest;
    std::vector<Memory> shared;  // everything but the KV cache
};

struct LoadedMethod {
    MallocMemoryAllocator allocator, temporary;
    std::vector<Span<uint8_t>> spans;
    std::optional<HierarchicalAllocator> planned;
    std::optional<MemoryManager> manager;
    std::optional<Method> method;
};

void log_errors(et_timestamp_t, et_pal_log_level_t level, const char *, const char *, size_t,
                const char *message, size_t) {
    if (level == et_pal_log_level_t::kError || level == et_pal_log_level_t::kFatal) {
        std::fprintf(stderr, "executorch: %s\n", message);
    }
}

}  // namespace

struct edge_et_program {
    std::shared_ptr<State> state;
};

struct edge_et_cache {
    std::shared_ptr<State> program;
    Memory rows;
    std::map<std::string, std::unique_ptr<LoadedMethod>> methods;

    LoadedMethod *load(const char *name) {
        auto &loaded = methods[name];
        if (loaded) return loaded.get();
        const auto planned = program->planned.find(name);
        if (planned == program->planned.end()) {
            fail(std::string("The program has no method '") + name + "'.");
            return nullptr;
        }
        auto made = std::make_unique<LoadedMethod>();
        for (size_t i = 0; i < planned->second.size(); ++i) {
            const Memory &memory = i == mutable_buffers ? rows : program->shared[i];
            made->spans.push_back({memory.start(), planned->second[i]});
        }
        made->planned.emplace(Span<Span<uint8_t>>{made->spans.data(), made->spans.size()});
        made->manager.emplace(&made->allocator, &*made->planned, &made->temporary);
        auto method = program->program->load_method(name, &*made->manager);
        if (!method.ok()) {
            fail(std::string("ExecuTorch can't load the method '") + name + "' (error " +
                 std::to_string(int(method.error())) +
                 "; 20 is a missing operator): export the model again, for the installed version.");
            return nullptr;
        }
        made->method.emplace(std::move(*method));
        loaded = std::move(made);
        return loaded.get();
    }
};

extern "C" {

const char *edge_et_error(void) { return last_error.c_str(); }

int edge_et_threads(void) {
    return int(executorch::extension::threadpool::get_threadpool()->get_thread_count());
}

int edge_et_open(const void *data, uint64_t bytes, int32_t threads, edge_et_program **program) {
    [[maybe_unused]] static const bool quiet =
        executorch::runtime::register_pal(executorch::runtime::PalImpl::create(log_errors, __FILE__));
    executorch::runtime::runtime_init();
    share_packed_weights();
    if (threads > 0) {
        executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(uint32_t(threads));
    }
    auto made = std::make_shared<State>();
    made->loader = std::make_unique<BufferDataLoader>(data, bytes);
    auto loaded = Program::load(made->loader.get(), Program::Verification::InternalConsistency);
    if (!loaded.ok()) {
        return fail("The file is not a program of this ExecuTorch version (error " +
                    std::to_string(int(loaded.error())) + "); export the model again.");
    }
    made->program.emplace(std::move(*loaded));
    for (size_t i = 0; i < made->program->num_methods(); ++i) {
        const auto name = made->program->get_method_name(i);
        if (!name.ok()) return fail("The program has a method without a name; export the model again.");
        const auto meta = made->program->method_meta(*name);
        if (!meta.ok()) return fail("A method of the program is damaged; export the model again.");
        std::vector<size_t> sizes;
        for (size_t j = 0; j < meta->num_memory_planned_buffers(); ++j) {
            sizes.push_back(size_t(meta->memory_planned_buffer_size(j).get()));
        }
        made->largest.resize(std::max(made->largest.size(), sizes.size()));
        for (size_t j = 0; j < sizes.size(); ++j) made->largest[j] = std::max(made->largest[j], sizes[j]);
        made->planned[*name] = std::move(sizes);
    }
    made->shared.resize(made->largest.size());
    for (size_t j = 0; j < made->shared.size(); ++j) {
        if (j != mutable_buffers && !made->shared[j].allocate(made->largest[j])) {
            return fail("There is not enough memory for the activations.");
        }
    }
    *program = new edge_et_program{std::move(made)};
    return 0;
}

void edge_et_close(edge_et_program *program) { delete program; }

int edge_et_has(const edge_et_program *program, const char *method) {
    return program->state->planned.count(method) != 0;
}

int edge_et_cache_create(edge_et_program *program, edge_et_cache **cache) {
    auto made = std::make_unique<edge_et_cache>();
    made->program = program->state;
    const auto &largest = program->state->largest;
    const size_t bytes = largest.size() > mutable_buffers ? largest[mutable_buffers] : 0;
    if (!made->rows.allocate(bytes)) return fail("There is not enough memory for a KV cache.");
    *cache = made.release();
    return 0;
}

void edge_et_cache_destroy(edge_et_cache *cache) { delete cache; }

int edge_et_constant(edge_et_program *program, const char *method, int64_t *values, int32_t room,
                     int32_t *count) {
    edge_et_cache nothing;
    nothing.program = program->state;
    LoadedMethod *loaded = nothing.load(method);
    if (loaded == nullptr) return 1;
    if (loaded->method->execute() != Error::Ok) {
        return fail(std::string("The constant '") + method + "' is unreadable.");
    }
    *count = 0;
    for (size_t i = 0; i < loaded->method->outputs_size(); ++i) {
        const EValue &value = loaded->method->get_output(i);
        if (*count == room) return fail(std::string("The constant '") + method + "' has too many values.");
        if (value.isInt()) {
            values[(*count)++] = value.toInt();
        } else if (value.isBool()) {
            values[(*count)++] = value.toBool();
        } else {
            return fail(std::string("The constant '") + method + "' is not a number.");
        }
    }
    return 0;
}

int edge_et_run(edge_et_cache *cache, const char *name, const edge_et_input *inputs, int32_t input_count,
                edge_et_output *outputs, int32_t output_count) {
    LoadedMethod *loaded = cache->load(name);
    if (loaded == nullptr) return 1;
    Method &method = *loaded->method;
    const std::string where = std::string("'") + name + "'";
    if (method.inputs_size() != size_t(input_count) || method.outputs_size() != size_t(output_count)) {
        return fail("The method " + where + " has other inputs and outputs; export the model again.");
    }
    std::vector<TensorImpl> tensors;
    tensors.reserve(size_t(input_count));
    int32_t sizes[8][EDGE_ET_DIMENSIONS];
    uint8_t order[EDGE_ET_DIMENSIONS] = {0, 1};
    int32_t strides[8][EDGE_ET_DIMENSIONS];
    if (input_count > 8) return fail("The method " + where + " has too many inputs.");
    for (int32_t i = 0; i < input_count; ++i) {
        const int32_t dimensions = inputs[i].dimensions;
        if (dimensions < 1 || dimensions > EDGE_ET_DIMENSIONS) {
            return fail("An input has too many dimensions.");
        }
        int32_t stride = 1;
        for (int32_t d = dimensions - 1; d >= 0; --d) {
            if (inputs[i].sizes[d] < 0 || int64_t(stride) * inputs[i].sizes[d] > INT32_MAX) {
                return fail("Input " + std::to_string(i) + " of the method " + where +
                            " has an impossible shape.");
            }
            sizes[i][d] = inputs[i].sizes[d];
            strides[i][d] = stride;
            stride *= inputs[i].sizes[d];
        }
        tensors.emplace_back(ScalarType::Long, dimensions, sizes[i], const_cast<int64_t *>(inputs[i].data),
                             order, strides[i]);
        const Error error = method.set_input(EValue(Tensor(&tensors.back())), size_t(i));
        if (error != Error::Ok) {
            return fail("Input " + std::to_string(i) + " does not fit the method " + where + " (error " +
                        std::to_string(int(error)) + ").");
        }
    }
    const Error error = method.execute();
    if (error != Error::Ok) {
        return fail("The method " + where + " failed (error " + std::to_string(int(error)) + ").");
    }
    for (int32_t i = 0; i < output_count; ++i) {
        if (outputs[i].data == nullptr) continue;
        const EValue &value = method.get_output(size_t(i));
        if (!value.isTensor()) return fail("A result of the method " + where + " is not a tensor.");
        const Tensor tensor = value.toTensor();
        if (tensor.nbytes() > outputs[i].room) {
            return fail("A result of the method " + where + " is too large.");
        }
        std::memcpy(outputs[i].data, tensor.const_data_ptr(), tensor.nbytes());
        outputs[i].bytes = tensor.nbytes();
    }
    return 0;
}

}  // extern "C"
