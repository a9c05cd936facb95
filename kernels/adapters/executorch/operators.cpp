// The operators of a decoder layer for ExecuTorch: a library of kernels that registers itself when it is loaded.
//
// Threads are ExecuTorch's own pool, memory is the runtime's temporary allocator; a refusal is logged as a sentence and
// fails the method with InvalidArgument. ExecuTorch promises no binary interface: compile this file against the
// version that runs it (edge.executors.adapters does).
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <initializer_list>
#include <optional>

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include "../calls.h"

namespace {

using edge_adapter::CacheNumbers;
using edge_adapter::Numbers;
using edge_adapter::refuse;
using executorch::aten::ArrayRef;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;
using EtTensor = executorch::aten::Tensor;
using Integers = ArrayRef<int64_t>;

edge_adapter::Tensor view(const EtTensor &in, const char *name, ScalarType type) {
    edge_adapter::Tensor tensor;
    if (in.scalar_type() != type) refuse("%s has the wrong type of elements.", name);
    if (in.dim() > edge_adapter::Tensor::most_dims || !executorch::runtime::tensor_is_default_dim_order(in)) {
        refuse("%s must be dense rows of at most %d dimensions.", name, edge_adapter::Tensor::most_dims);
    }
    tensor.data = const_cast<void *>(in.const_data_ptr());
    tensor.rank = int(in.dim());
    for (int i = 0; i < tensor.rank; ++i) tensor.dims[i] = in.size(i);
    tensor.given = true;
    return tensor;
}

edge_adapter::Tensor floats(const EtTensor &in, const char *name) {
    return view(in, name, ScalarType::Float);
}
edge_adapter::Tensor bytes(const EtTensor &in, const char *name) { return view(in, name, ScalarType::Byte); }
edge_adapter::Tensor integers(const EtTensor &in, const char *name) {
    return view(in, name, ScalarType::Long);
}
edge_adapter::Tensor tree_masks(const std::optional<EtTensor> &tree) {
    return tree.has_value() ? integers(*tree, "tree") : edge_adapter::Tensor{};
}

Numbers numbers(const Integers &list) { return {list.data(), int64_t(list.size())}; }

// Where a kernel runs and where its result goes. Not movable: the host points into it.
class Call {
   public:
    Call(KernelRuntimeContext &context, EtTensor &out)
        : out_(out),
          tasks_{nullptr, int32_t(executorch::extension::get_thread_count()), run_tasks},
          parallel_(edge_tasks_parallel(&tasks_)),
          scratch_{&context, allocate},
          host{&parallel_, &scratch_, nullptr} {}
    Call(const Call &) = delete;

    // The leading dimensions of `like`, then `last`.
    float *operator()(const edge_adapter::Tensor &like, int leading,
                      std::initializer_list<int64_t> last) const {
        SizesType dims[edge_adapter::Tensor::most_dims];
        const size_t rank = size_t(leading) + last.size();
        if (rank > edge_adapter::Tensor::most_dims)
            refuse("A result of %d dimensions is too deep.", int(rank));
        std::copy_n(like.dims, leading, dims);
        std::copy(last.begin(), last.end(), dims + leading);
        resize(dims, rank);
        return out_.mutable_data_ptr<float>();
    }

    void resize(const SizesType *dims, size_t rank) const {
        if (executorch::runtime::resize_tensor(out_, {dims, rank}) != Error::Ok) {
            refuse("The result is larger than the memory that was planned for it.");
        }
    }

   private:
    static void run_tasks(void *, int32_t count, void (*task)(void *, int32_t), void *argument) {
        const bool done = executorch::extension::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) task(argument, int32_t(i));
        });
        // Shares are claimed, so doing all tasks here is right whatever was done.
        for (int32_t i = 0; !done && i < count; ++i) task(argument, i);
    }

    static void *allocate(void *context, uint64_t size) {
        auto memory = static_cast<KernelRuntimeContext *>(context)->allocate_temp(size_t(size), 64);
        return memory.ok() ? memory.get() : nullptr;
    }

    EtTensor &out_;
    const edge_tasks tasks_;
    const edge_parallel parallel_;
    const edge_scratch scratch_;

   public:
    const edge_host host;
};

// Runs `body(call)`; what it throws fails the method.
template <class Body>
EtTensor &guarded(KernelRuntimeContext &context, const char *name, EtTensor &out, const Body &body) {
    try {
        const Call call(context, out);
        body(call);
        return out;
    } catch (const edge_adapter::Refusal &refusal) {
        ET_LOG(Error, "edge::%s: %s", name, refusal.text);
        context.fail(refusal.status == EDGE_NO_MEMORY ? Error::MemoryAllocationFailed
                                                      : Error::InvalidArgument);
    } catch (const std::exception &error) {
        ET_LOG(Error, "edge::%s: %s", name, error.what());
        context.fail(Error::Internal);
    }
    return out;
}

EtTensor &embedding(KernelRuntimeContext &context, const EtTensor &tokens, const EtTensor &weight,
                    Integers matrix, double scale, EtTensor &out) {
    return guarded(context, "embedding", out, [&](const Call &call) {
        edge_adapter::embedding(call.host, integers(tokens, "tokens"), bytes(weight, "weight"),
                                numbers(matrix), float(scale), call);
    });
}

EtTensor &rope_table(KernelRuntimeContext &context, const EtTensor &positions,
                     const EtTensor &inverse_frequency, double scale, EtTensor &out) {
    return guarded(context, "rope_table", out, [&](const Call &call) {
        edge_adapter::rope_table(integers(positions, "positions"),
                                 floats(inverse_frequency, "inverse_frequency"), float(scale), call);
    });
}

EtTensor &rms_norm(KernelRuntimeContext &context, const EtTensor &x, const EtTensor &norm, double eps,
                   double scale, EtTensor &out) {
    return guarded(context, "rms_norm", out, [&](const Call &call) {
        edge_adapter::rms_norm(call.host, floats(x, "x"), floats(norm, "norm"), float(eps), float(scale),
                               call);
    });
}

EtTensor &rms_norm_linear(KernelRuntimeContext &context, const EtTensor &x, const EtTensor &norm,
                          ArrayRef<EtTensor> weights, Integers matrices, double eps, double scale,
                          int64_t activations, EtTensor &out) {
    return guarded(context, "rms_norm_linear", out, [&](const Call &call) {
        edge_adapter::Tensor packed[EDGE_MAX_MATRICES];
        for (size_t i = 0; i < std::min<size_t>(weights.size(), EDGE_MAX_MATRICES); ++i) {
            packed[i] = bytes(weights[i], "weights");
        }
        edge_adapter::rms_norm_linear(call.host, floats(x, "x"), floats(norm, "norm"), packed,
                                      int64_t(weights.size()), numbers(matrices), float(eps), float(scale),
                                      activations, call);
    });
}

EtTensor &rms_norm_swiglu(KernelRuntimeContext &context, const EtTensor &x, const EtTensor &norm,
                          const EtTensor &gate, const EtTensor &up, Integers matrices, double eps,
                          int64_t activations, EtTensor &out) {
    return guarded(context, "rms_norm_swiglu", out, [&](const Call &call) {
        edge_adapter::rms_norm_swiglu(call.host, floats(x, "x"), floats(norm, "norm"), bytes(gate, "gate"),
                                      bytes(up, "up"), numbers(matrices), float(eps), activations, call);
    });
}

EtTensor &linear(KernelRuntimeContext &context, const EtTensor &x, const EtTensor &weight, Integers matrix,
                 const std::optional<EtTensor> &residual, double scale, int64_t activations, EtTensor &out) {
    return guarded(context, "linear", out, [&](const Call &call) {
        edge_adapter::linear(call.host, floats(x, "x"), bytes(weight, "weight"), numbers(matrix),
                             residual.has_value() ? floats(*residual, "residual") : edge_adapter::Tensor{},
                             float(scale), activations, call);
    });
}

// `cache` is changed in place; the registry logs only the tensors at the end as results.
EtTensor &kv_append(KernelRuntimeContext &context, const EtTensor &qkv, const EtTensor &rope,
                    const EtTensor &start, const EtTensor &cache, const std::optional<EtTensor> &tree,
                    int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t kv_type, int64_t capacity,
                    Integers sparse, EtTensor &out) {
    return guarded(context, "kv_append", out, [&](const Call &call) {
        const CacheNumbers shape{heads, kv_heads, head_dim, kv_type, capacity, numbers(sparse)};
        edge_adapter::kv_append(call.host, floats(qkv, "qkv"), floats(rope, "rope"), integers(start, "start"),
                                bytes(cache, "cache"), tree_masks(tree), shape, call);
    });
}

EtTensor &paged_attention(KernelRuntimeContext &context, const EtTensor &queries, const EtTensor &start,
                          const EtTensor &cache, const std::optional<EtTensor> &tree, int64_t heads,
                          int64_t kv_heads, int64_t head_dim, int64_t kv_type, int64_t capacity,
                          Integers sparse, EtTensor &out) {
    return guarded(context, "paged_attention", out, [&](const Call &call) {
        const CacheNumbers shape{heads, kv_heads, head_dim, kv_type, capacity, numbers(sparse)};
        edge_adapter::paged_attention(call.host, floats(queries, "queries"), integers(start, "start"),
                                      bytes(cache, "cache"), tree_masks(tree), shape, call);
    });
}

EtTensor &kv_keep(KernelRuntimeContext &context, const EtTensor &rows, const EtTensor &start,
                  const EtTensor &cache, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t kv_type,
                  int64_t capacity, Integers sparse, EtTensor &out) {
    return guarded(context, "kv_keep", out, [&](const Call &call) {
        const CacheNumbers shape{heads, kv_heads, head_dim, kv_type, capacity, numbers(sparse)};
        const int64_t length = edge_adapter::kv_keep(call.host, integers(rows, "rows"),
                                                     integers(start, "start"), bytes(cache, "cache"), shape);
        const SizesType one = 1;
        call.resize(&one, 1);
        *out.mutable_data_ptr<int64_t>() = length;
    });
}

}  // namespace

EXECUTORCH_LIBRARY(edge, "embedding.out", embedding);
EXECUTORCH_LIBRARY(edge, "rope_table.out", rope_table);
EXECUTORCH_LIBRARY(edge, "rms_norm.out", rms_norm);
EXECUTORCH_LIBRARY(edge, "rms_norm_linear.out", rms_norm_linear);
EXECUTORCH_LIBRARY(edge, "rms_norm_swiglu.out", rms_norm_swiglu);
EXECUTORCH_LIBRARY(edge, "linear.out", linear);
EXECUTORCH_LIBRARY(edge, "kv_append.out", kv_append);
EXECUTORCH_LIBRARY(edge, "paged_attention.out", paged_attention);
EXECUTORCH_LIBRARY(edge, "kv_keep.out", kv_keep);
