/* Our operators as ExecuTorch kernels (`edge::NAME.out`): the C operators of edge_operators.h on the runtime's threads
 * and in its temporary memory. Registered when the library is loaded; a second copy of it in a process is an error.
 */
#include "edge_operators.h"

#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>

namespace {

using executorch::aten::ArrayRef;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Kernel;
using executorch::runtime::KernelRuntimeContext;
using executorch::runtime::Span;

constexpr size_t kMatrixNumbers = 5, kSparseNumbers = 8, kMaxDimensions = 16;
constexpr size_t kScratchAlignment = 64;

void run_parallel(void *, int64_t count, int64_t grain, edge_task task, void *argument) {
    std::atomic<int64_t> next{0};
    const int64_t workers = std::min(executorch::extension::get_thread_count(), (count + grain - 1) / grain);
    executorch::extension::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
        for (int64_t worker = first; worker < last; ++worker)
            for (int64_t at = next.fetch_add(grain); at < count; at = next.fetch_add(grain))
                task(argument, at, std::min(at + grain, count), static_cast<int32_t>(worker));
    });
}

void *allocate_scratch(void *context, uint64_t bytes) {
    auto memory = static_cast<KernelRuntimeContext *>(context)->allocate_temp(bytes, kScratchAlignment);
    return memory.ok() ? *memory : nullptr;
}

/* Arguments of one call in the order of the schema, then the result; what does not fit marks the call as failed. */
class Call {
   public:
    Call(KernelRuntimeContext &context, Span<EValue *> values, size_t count)
        : context_(context), values_(values) {
        scratch_ = {&context, allocate_scratch};
        parallel_ = {nullptr, static_cast<int32_t>(executorch::extension::get_thread_count()), run_parallel};
        host = {&parallel_, &scratch_, nullptr};
        if (values.size() < count + 1) reject("the schema has another number of arguments");
    }

    bool ok() const { return ok_; }

    void reject(const char *reason) {
        if (ok_) ET_LOG(Error, "%s", reason);
        ok_ = false;
        context_.fail(Error::InvalidArgument);
    }

    void finish(edge_status status) {
        if (status != EDGE_OK) reject(edge_last_error());
    }

    int64_t integer(size_t i) const { return values_[i]->toInt(); }
    float number(size_t i) const { return static_cast<float>(values_[i]->toDouble()); }
    ArrayRef<int64_t> integers(size_t i) const { return values_[i]->toIntList(); }

    template <typename T>
    const T *data(size_t i, ScalarType type) {
        return checked<T>(values_[i]->toTensor(), type);
    }
    const float *floats(size_t i) { return data<float>(i, ScalarType::Float); }
    const int64_t *longs(size_t i) { return data<int64_t>(i, ScalarType::Long); }
    int64_t size(size_t i) const { return values_[i]->toTensor().numel(); }

    /* Rows of the tensor's last dimension. */
    int64_t rows(size_t i) const {
        const Tensor tensor = values_[i]->toTensor();
        const auto columns = tensor.dim() == 0 ? 1 : tensor.size(tensor.dim() - 1);
        return columns == 0 ? 0 : tensor.numel() / columns;
    }
    int64_t columns(size_t i) const {
        const Tensor tensor = values_[i]->toTensor();
        return tensor.dim() == 0 ? 1 : tensor.size(tensor.dim() - 1);
    }

    std::optional<Tensor> optional(size_t i) const { return values_[i]->toOptional<Tensor>(); }

    template <typename T>
    const T *checked(const Tensor &tensor, ScalarType type) {
        if (tensor.scalar_type() != type) reject("a tensor has another type than the schema says");
        return ok_ ? tensor.const_data_ptr<T>() : nullptr;
    }

    /* A tree of n tokens; NULL for causal order. */
    const uint64_t *tree(size_t i, int64_t n) {
        const auto masks = optional(i);
        if (!masks || masks->numel() == 0) return nullptr;
        if (masks->numel() != n) reject("a tree has one mask per token");
        return reinterpret_cast<const uint64_t *>(checked<int64_t>(*masks, ScalarType::Long));
    }

    /* The numbers of matrix `index` of the list at i, over a tensor of packed bytes. */
    edge_matrix matrix(const Tensor &packed, size_t i, size_t index) {
        const auto numbers = integers(i);
        edge_matrix made{};
        if (numbers.size() < (index + 1) * kMatrixNumbers) {
            reject("a matrix is described by 5 numbers");
            return made;
        }
        const int64_t *at = numbers.data() + index * kMatrixNumbers;
        made.kind = static_cast<int32_t>(at[0]);
        made.group = static_cast<int32_t>(at[1]);
        made.minimum = static_cast<int32_t>(at[2]);
        made.rows = at[3];
        made.columns = at[4];
        made.data = checked<uint8_t>(packed, ScalarType::Byte);
        made.bytes = static_cast<uint64_t>(packed.numel());
        return made;
    }
    edge_matrix matrix(size_t tensor, size_t i, size_t index = 0) {
        return matrix(values_[tensor]->toTensor(), i, index);
    }
    ArrayRef<Tensor> tensors(size_t i) const { return values_[i]->toTensorList(); }

    /* The cache at i, described by the six arguments from `shape` on. */
    edge_layer_cache cache(size_t i, size_t shape) {
        edge_layer_cache made{};
        made.heads = static_cast<int32_t>(integer(shape));
        made.kv_heads = static_cast<int32_t>(integer(shape + 1));
        made.head_dim = static_cast<int32_t>(integer(shape + 2));
        made.kv_type = static_cast<int32_t>(integer(shape + 3));
        made.capacity = integer(shape + 4);
        const auto numbers = integers(shape + 5);
        if (numbers.size() == kSparseNumbers) {
            std::array<int32_t, kSparseNumbers> s;
            for (size_t j = 0; j < kSparseNumbers; ++j) s[j] = static_cast<int32_t>(numbers[j]);
            made.sparse = {1, s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]};
        } else if (!numbers.empty()) {
            reject("sparse attention is described by 8 numbers or none");
        }
        made.memory = const_cast<uint8_t *>(data<uint8_t>(i, ScalarType::Byte));
        made.bytes = static_cast<uint64_t>(size(i));
        return made;
    }

    /* The result, made as large as the leading sizes of `like` (without its last `dropped` ones) and `last`. */
    float *out(size_t i, size_t like, size_t dropped, std::initializer_list<int64_t> last) {
        const Tensor source = values_[like]->toTensor();
        Tensor result = values_[i]->toTensor();
        std::array<SizesType, kMaxDimensions> sizes;
        size_t count = 0;
        const auto kept = static_cast<size_t>(source.dim()) - dropped;
        if (kept + last.size() > kMaxDimensions) {
            reject("a tensor has too many dimensions");
            return nullptr;
        }
        for (; count < kept; ++count) sizes[count] = source.size(static_cast<ssize_t>(count));
        for (const int64_t size : last) sizes[count++] = static_cast<SizesType>(size);
        if (executorch::runtime::resize_tensor(result, {sizes.data(), count}) != Error::Ok) {
            reject("the result does not fit the memory that was planned for it");
            return nullptr;
        }
        return const_cast<float *>(checked<float>(result, ScalarType::Float));
    }

    int64_t *out_long(size_t i) {
        return const_cast<int64_t *>(checked<int64_t>(values_[i]->toTensor(), ScalarType::Long));
    }

    edge_host host;

   private:
    KernelRuntimeContext &context_;
    Span<EValue *> values_;
    edge_parallel parallel_;
    edge_scratch scratch_;
    bool ok_ = true;
};

/* tokens, weight, matrix, scale */
void embedding(KernelRuntimeContext &context, Span<EValue *> values) {
    Call call(context, values, 4);
    if (!call.ok()) return;
    const edge_matrix w = call.matrix(1, 2);
    const int64_t *tokens = call.longs(0);
    float *out = call.out(4, 0, 0, {w.columns});
    if (call.ok()) call.finish(edge_embedding(&call.host, &w, tokens, call.size(0), call.number(3), out));
}

/* positions, inverse_frequency, scale */
void rope_table(KernelRuntimeContext &context, Span<EValue *> values) {
    Call call(context, values, 3);
    if (!call.ok()) return;
    const int64_t *positions = call.longs(0);
    const float *frequencies = call.floats(1);
    const int64_t half = call.size(1);
    float *out = call.out(3, 0, 0, {2, half});
    if (call.ok())
        call.finish(edge_rope_table(positions, call.size(0), frequencies, half, call.number(2), out));
}

/* x, norm, eps, scale */
void rms_norm(KernelRuntimeContext &context, Span<EValue *> values) {
    Call call(context, values, 4);
    if (!call.ok()) return;
    const float *x = call.floats(0), *norm = call.floats(1);
    if (call.size(1) != call.columns(0)) call.reject("a norm has one weight per column");
    float *out = call.out(4, 0, 0, {});
    if (call.ok())
        call.finish(edge_rms_norm(call.host.parallel, call.host.scratch, call.host.tier, x, norm,
                                  call.number(2), call.number(3), call.rows(0), call.columns(0), out));
}

/* x, norm, weights, matrices, eps, scale, activations */
void rms_norm_linear(KernelRuntimeContext &context, Span<EValue *> values) {
    Call call(context, values, 7);
    if (!call.ok()) return;
    const auto weights = call.tensors(2);
    if (weights.empty() || weights.size() > EDGE_MAX_MATRICES)
        return call.reject("there are 1 to 8 matrices");
    std::array<edge_matrix, EDGE_MAX_MATRICES> matrices;
    int64_t rows = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
        matrices[i] = call.matrix(weights[i], 3, i);
        rows += matrices[i].rows;
        if (matrices[i].columns != call.columns(0)) call.reject("a matrix has other columns than x");
    }
    if (call.size(1) != call.columns(0)) call.reject("a norm has one weight per column");
    const float *x = call.floats(0), *norm = call.floats(1);
    float *out = call.out(7, 0, 1, {rows});
    if (call.ok())
        call.finish(edge_rms_norm_linear(&call.host, x, call.rows(0), norm, call.number(4), call.number(5),
                                         matrices.data(), static_cast<int32_t>(weights.size()),
                                         static_cast<int32_t>(call.integer(6)), out));
}

/* x, norm, gate, up, matrices, eps, activations */
void rms_norm_swiglu(KernelRuntimeContext &context, Span<EValue *> values) {
    Call call(context, values, 7);
    if (!call.ok()) return;
    const edge_matrix gate = call.matrix(2, 4, 0), up = call.matrix(3, 4, 1);
    if (call.size(1) != call.columns(0) || gate.columns != call.columns(0) || up.columns != call.columns(0))
        call.reject("norm, gate and up have as many columns as x");
    const float *x = call.floats(0), *norm = call.floats(1);
    float *out = call.out(7, 0, 1, {gate.rows});
    if (call.ok())
        call.finish(edge_rms_norm_swiglu(&call.host, x, call.rows(0), norm, call.number(5), &gate, &up,
                                         static_cast<int32_t>(call.integer(6)), out));
}

/* x, weight, matrix, residual, scale, activations */
void linear(KernelRuntimeContext &context, Span<EValue *> values) {
    Call call(context, values, 6);
    if (!call.ok()) return;
    const edge_matrix w = call.matrix(1, 2);
    if (w.columns != call.columns(0)) call.reject("the matrix has other columns than x");
    const float *x = call.floats(0), *residual = nullptr;
    if (const auto given = call.optional(3)) {
        if (given->numel() != call.rows(0) * w.rows)
            call.reject("the residual has another size than the result");
        residual = call.checked<float>(*given, ScalarType::Float);
    }
    float *out = call.out(6, 0, 1, {w.rows});
    if (call.ok())
        call.finish(edge_linear_residual(&call.host, x, call.rows(0), &w, residual, call.number(4),
                                         static_cast<int32_t>(call.integer(5)), out));
}

/* qkv, rope, start, cache, tree, shape... */
void kv_append(KernelRuntimeContext &context, Span<EValue *> values) {
    Call call(context, values, 11);
    if (!call.ok()) return;
    const edge_layer_cache cache = call.cache(3, 5);
    const int64_t n = call.rows(0), width = int64_t{cache.heads} * cache.head_dim;
    if (call.columns(0) != width + 2 * int64_t{cache.kv_heads} * cache.head_dim ||
        call.size(1) != n * cache.head_dim || call.size(2) != 1)
        call.reject("queries, keys and values do not fit the cache");
    const float *qkv = call.floats(0), *rope = call.floats(1);
    const int64_t *start = call.longs(2);
    const uint64_t *tree = call.tree(4, n);
    float *out = call.out(11, 0, 1, {width});
    if (call.ok()) call.finish(edge_kv_append(&call.host, &cache, qkv, rope, n, *start, tree, out));
}

/* queries, start, cache, tree, shape... */
void paged_attention(KernelRuntimeContext &context, Span<EValue *> values) {
    Call call(context, values, 10);
    if (!call.ok()) return;
    const edge_layer_cache cache = call.cache(2, 4);
    const int64_t n = call.rows(0);
    if (call.columns(0) != int64_t{cache.heads} * cache.head_dim || call.size(1) != 1)
        call.reject("the queries do not fit the cache");
    const float *queries = call.floats(0);
    const int64_t *start = call.longs(1);
    const uint64_t *tree = call.tree(3, n);
    float *out = call.out(10, 0, 0, {});
    if (call.ok()) call.finish(edge_paged_attention(&call.host, &cache, queries, n, *start, tree, out));
}

/* rows, start, cache, shape... */
void kv_keep(KernelRuntimeContext &context, Span<EValue *> values) {
    Call call(context, values, 9);
    if (!call.ok()) return;
    const edge_layer_cache cache = call.cache(2, 3);
    const int64_t *rows = call.longs(0), *start = call.longs(1);
    int64_t *out = call.out_long(9);
    if (call.size(1) != 1) call.reject("start is one number");
    if (!call.ok()) return;
    call.finish(edge_kv_keep(&call.host, &cache, rows, call.size(0), *start));
    *out = *start + call.size(0);
}

const Kernel kernels[] = {
    Kernel("edge::embedding.out", embedding),
    Kernel("edge::rope_table.out", rope_table),
    Kernel("edge::rms_norm.out", rms_norm),
    Kernel("edge::rms_norm_linear.out", rms_norm_linear),
    Kernel("edge::rms_norm_swiglu.out", rms_norm_swiglu),
    Kernel("edge::linear.out", linear),
    Kernel("edge::kv_append.out", kv_append),
    Kernel("edge::paged_attention.out", paged_attention),
    Kernel("edge::kv_keep.out", kv_keep),
};
const auto registered = executorch::runtime::register_kernels({kernels, std::size(kernels)});

}  // namespace
