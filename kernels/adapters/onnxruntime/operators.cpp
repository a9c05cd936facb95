// The operators of a decoder layer for ONNX Runtime: a library of custom operators in the domain `edge`.
//
// Threads are the session's intra-op threads, memory is its arena; every refusal is an OrtStatus with a sentence.
#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <vector>

#include "../calls.h"
#include "abi.h"

using edge_adapter::CacheNumbers;
using edge_adapter::Numbers;
using edge_adapter::Refusal;
using edge_adapter::refuse;
using edge_adapter::Tensor;

namespace {

const OrtApi *api;

// An error of ONNX Runtime on its way to whoever called us.
struct Failure {
    OrtStatus *status;
};

template <ort::Function index, class... Arguments>
void call(Arguments... arguments) {
    if (OrtStatus *status = ort::call<index>(api, arguments...)) throw Failure{status};
}

// Turns what `body` throws into a status.
template <class Body>
OrtStatus *guarded(const char *name, const Body &body) {
    char text[640];
    const auto status = [&](int code, const char *why) {
        std::snprintf(text, sizeof text, "edge.%s: %s", name, why);
        return ort::call<ort::CreateStatus>(api, code, static_cast<const char *>(text));
    };
    try {
        body();
        return nullptr;
    } catch (const Failure &failure) { return failure.status; } catch (const Refusal &refusal) {
        const bool invalid = refusal.status == EDGE_INVALID || refusal.status == EDGE_CONTEXT ||
                             refusal.status == EDGE_VOCABULARY;
        return status(invalid ? ort::error_invalid_argument : ort::error_fail, refusal.text);
    } catch (const std::exception &error) { return status(ort::error_fail, error.what()); }
}

// The attributes of a node.
class Attributes {
   public:
    explicit Attributes(const OrtKernelInfo *info) : info_(info) {}

    int64_t integer(const char *name) const {
        int64_t value;
        call<ort::KernelInfoGetAttribute_int64>(info_, name, &value);
        return value;
    }
    float number(const char *name) const {
        float value;
        call<ort::KernelInfoGetAttribute_float>(info_, name, &value);
        return value;
    }
    std::vector<int64_t> integers(const char *name) const {
        size_t count = 0;
        call<ort::KernelInfoGetAttributeArray_int64>(info_, name, static_cast<int64_t *>(nullptr), &count);
        std::vector<int64_t> values(count);
        call<ort::KernelInfoGetAttributeArray_int64>(info_, name, values.data(), &count);
        return values;
    }
    // Empty where the attribute is missing.
    std::vector<int64_t> optional_integers(const char *name) const {
        size_t count = 0;
        OrtStatus *missing = ort::call<ort::KernelInfoGetAttributeArray_int64>(
            api, info_, name, static_cast<int64_t *>(nullptr), &count);
        if (missing == nullptr) return count > 0 ? integers(name) : std::vector<int64_t>{};
        ort::release<ort::ReleaseStatus>(api, missing);
        return {};
    }

   private:
    const OrtKernelInfo *info_;
};

Numbers numbers_of(const std::vector<int64_t> &values) { return {values.data(), int64_t(values.size())}; }

// One call of a kernel: its tensors, and where it runs. Not movable: the host points into it.
class Call {
   public:
    Call(OrtKernelContext *context, OrtAllocator *allocator)
        : context_(context),
          allocator_(allocator),
          tasks_{context, edge_default_threads_once(), run_tasks},
          parallel_(edge_tasks_parallel(&tasks_)),
          scratch_{this, allocate},
          host{&parallel_, &scratch_, nullptr} {
        call<ort::KernelContext_GetInputCount>(const_context(), &input_count_);
    }
    Call(const Call &) = delete;
    ~Call() {
        if (memory_ != nullptr) allocator_->Free(allocator_, memory_);
    }

    size_t input_count() const { return input_count_; }

    Tensor input(size_t index) const {
        const OrtValue *value = nullptr;
        if (index < input_count_) call<ort::KernelContext_GetInput>(const_context(), index, &value);
        return value ? tensor_of(const_cast<OrtValue *>(value)) : Tensor{};
    }

    Tensor output(size_t index, const int64_t *dims, size_t rank) const {
        OrtValue *value;
        call<ort::KernelContext_GetOutput>(context_, index, dims, rank, &value);
        return tensor_of(value);
    }

    // The first output: the leading dimensions of `like`, then `last`.
    float *operator()(const Tensor &like, int leading, std::initializer_list<int64_t> last) const {
        int64_t dims[Tensor::most_dims];
        const size_t rank = size_t(leading) + last.size();
        if (rank > std::size(dims)) refuse("A result of %d dimensions is too deep.", int(rank));
        std::copy_n(like.dims, leading, dims);
        std::copy(last.begin(), last.end(), dims + leading);
        return output(0, dims, rank).as<float>();
    }

    // The second output: `cache`, in place where the caller has bound one tensor to both, else a copy.
    Tensor changed(const Tensor &cache) const {
        const Tensor out = output(1, cache.dims, size_t(cache.rank));
        if (out.data != cache.data) std::memcpy(out.data, cache.data, size_t(cache.count()));
        return out;
    }

   private:
    static int32_t edge_default_threads_once() {
        static const int32_t threads = edge_default_threads();
        return threads;
    }

    const OrtKernelContext *const_context() const { return context_; }

    static Tensor tensor_of(OrtValue *value) {
        Tensor tensor;
        OrtTensorTypeAndShapeInfo *info;
        call<ort::GetTensorTypeAndShape>(static_cast<const OrtValue *>(value), &info);
        const auto *shape = static_cast<const OrtTensorTypeAndShapeInfo *>(info);
        size_t rank = 0;
        OrtStatus *status = ort::call<ort::GetDimensionsCount>(api, shape, &rank);
        const bool deep = rank > size_t(Tensor::most_dims);
        if (!status && !deep) status = ort::call<ort::GetDimensions>(api, shape, tensor.dims, rank);
        ort::release<ort::ReleaseTensorTypeAndShapeInfo>(api, info);
        if (status) throw Failure{status};
        if (deep) refuse("A tensor of %d dimensions is too deep.", int(rank));
        tensor.rank = int(rank);
        tensor.given = true;
        call<ort::GetTensorMutableData>(value, &tensor.data);
        return tensor;
    }

    static void run_tasks(void *context, int32_t count, void (*task)(void *, int32_t), void *argument) {
        struct Tasks {
            void (*task)(void *, int32_t);
            void *argument;
        } tasks{task, argument};
        void (*const one)(void *, size_t) = [](void *all, size_t index) {
            static_cast<Tasks *>(all)->task(static_cast<Tasks *>(all)->argument, int32_t(index));
        };
        OrtStatus *status = ort::call<ort::KernelContext_ParallelFor>(
            api, static_cast<const OrtKernelContext *>(static_cast<OrtKernelContext *>(context)), one,
            size_t(count), size_t(0), static_cast<void *>(&tasks));
        if (status == nullptr) return;
        // No thread could be had: shares are claimed, so doing all tasks here is right whatever was done.
        ort::release<ort::ReleaseStatus>(api, status);
        for (int32_t i = 0; i < count; ++i) task(argument, i);
    }

    static void *allocate(void *context, uint64_t bytes) {
        Call *self = static_cast<Call *>(context);
        self->memory_ = self->allocator_->Alloc(self->allocator_, size_t(bytes) + alignment);
        const uintptr_t at = reinterpret_cast<uintptr_t>(self->memory_);
        return at ? reinterpret_cast<void *>((at + alignment - 1) / alignment * alignment) : nullptr;
    }

    static constexpr size_t alignment = 64;

    OrtKernelContext *const context_;
    OrtAllocator *const allocator_;
    const edge_tasks tasks_;
    const edge_parallel parallel_;
    const edge_scratch scratch_;
    size_t input_count_ = 0;
    void *memory_ = nullptr;

   public:
    const edge_host host;
};

// The kernel of one node: its attributes, read once.
class Kernel {
   public:
    explicit Kernel(const OrtKernelInfo *info) { call<ort::KernelInfoGetAllocator>(info, 0, &allocator_); }
    Kernel(const Kernel &) = delete;
    virtual ~Kernel() { ort::release<ort::ReleaseAllocator>(api, allocator_); }

    void compute(OrtKernelContext *context) const {
        const Call node(context, allocator_);
        run(node);
    }

   private:
    virtual void run(const Call &node) const = 0;

    OrtAllocator *allocator_ = nullptr;
};

struct Embedding final : Kernel {
    explicit Embedding(const OrtKernelInfo *info) : Kernel(info), attributes(info) {}
    void run(const Call &node) const override {
        edge_adapter::embedding(node.host, node.input(0), node.input(1), numbers_of(matrix), scale, node);
    }
    const Attributes attributes;
    const std::vector<int64_t> matrix = attributes.integers("matrix");
    const float scale = attributes.number("scale");
};

struct RopeTable final : Kernel {
    explicit RopeTable(const OrtKernelInfo *info) : Kernel(info), scale(Attributes(info).number("scale")) {}
    void run(const Call &node) const override {
        edge_adapter::rope_table(node.input(0), node.input(1), scale, node);
    }
    const float scale;
};

struct RmsNorm final : Kernel {
    explicit RmsNorm(const OrtKernelInfo *info) : Kernel(info), attributes(info) {}
    void run(const Call &node) const override {
        edge_adapter::rms_norm(node.host, node.input(0), node.input(1), eps, scale, node);
    }
    const Attributes attributes;
    const float eps = attributes.number("eps"), scale = attributes.number("scale");
};

struct RmsNormLinear final : Kernel {
    explicit RmsNormLinear(const OrtKernelInfo *info) : Kernel(info), attributes(info) {}
    void run(const Call &node) const override {
        Tensor weights[EDGE_MAX_MATRICES];
        const size_t count = node.input_count() - 2;
        for (size_t i = 0; i < std::min<size_t>(count, EDGE_MAX_MATRICES); ++i) {
            weights[i] = node.input(2 + i);
        }
        edge_adapter::rms_norm_linear(node.host, node.input(0), node.input(1), weights, int64_t(count),
                                      numbers_of(matrices), eps, scale, activations, node);
    }
    const Attributes attributes;
    const std::vector<int64_t> matrices = attributes.integers("matrices");
    const float eps = attributes.number("eps"), scale = attributes.number("scale");
    const int64_t activations = attributes.integer("activations");
};

struct RmsNormSwiglu final : Kernel {
    explicit RmsNormSwiglu(const OrtKernelInfo *info) : Kernel(info), attributes(info) {}
    void run(const Call &node) const override {
        edge_adapter::rms_norm_swiglu(node.host, node.input(0), node.input(1), node.input(2), node.input(3),
                                      numbers_of(matrices), eps, activations, node);
    }
    const Attributes attributes;
    const std::vector<int64_t> matrices = attributes.integers("matrices");
    const float eps = attributes.number("eps");
    const int64_t activations = attributes.integer("activations");
};

struct Linear final : Kernel {
    explicit Linear(const OrtKernelInfo *info) : Kernel(info), attributes(info) {}
    void run(const Call &node) const override {
        edge_adapter::linear(node.host, node.input(0), node.input(1), numbers_of(matrix), node.input(2),
                             scale, activations, node);
    }
    const Attributes attributes;
    const std::vector<int64_t> matrix = attributes.integers("matrix");
    const float scale = attributes.number("scale");
    const int64_t activations = attributes.integer("activations");
};

struct CacheKernel : Kernel {
    explicit CacheKernel(const OrtKernelInfo *info) : Kernel(info), attributes(info) {}
    const Attributes attributes;
    const std::vector<int64_t> sparse = attributes.optional_integers("sparse");
    const CacheNumbers numbers{attributes.integer("heads"),    attributes.integer("kv_heads"),
                               attributes.integer("head_dim"), attributes.integer("kv_type"),
                               attributes.integer("capacity"), numbers_of(sparse)};
};

struct KvAppend final : CacheKernel {
    using CacheKernel::CacheKernel;
    void run(const Call &node) const override {
        const Tensor cache = node.changed(node.input(3));
        edge_adapter::kv_append(node.host, node.input(0), node.input(1), node.input(2), cache, node.input(4),
                                numbers, node);
    }
};

struct PagedAttention final : CacheKernel {
    using CacheKernel::CacheKernel;
    void run(const Call &node) const override {
        edge_adapter::paged_attention(node.host, node.input(0), node.input(1), node.input(2), node.input(3),
                                      numbers, node);
    }
};

struct KvKeep final : CacheKernel {
    using CacheKernel::CacheKernel;
    void run(const Call &node) const override {
        const Tensor cache = node.changed(node.input(2));
        const int64_t one = 1;
        *node.output(0, &one, 1).as<int64_t>() =
            edge_adapter::kv_keep(node.host, node.input(0), node.input(1), cache, numbers);
    }
};

// What ONNX Runtime asks about an operator. Letters: f float, u uint8, i int64; the last `optional` inputs may be
// missing, or the last one stands for any number of its kind.
struct Signature {
    const char *name, *inputs, *outputs;
    size_t optional;
    bool variadic;
    int inplace_input, inplace_output;  // of inputs whose memory an output may take; -1: none
};

int type_of(char letter) {
    return letter == 'f' ? ort::type_float : letter == 'u' ? ort::type_uint8 : ort::type_int64;
}

template <class K>
struct Operator : OrtCustomOp {
    static inline Signature signature;

    explicit Operator(const Signature &own) : OrtCustomOp{} {
        signature = own;
        version = ort::api_version;
        GetName = [](const OrtCustomOp *) { return signature.name; };
        GetExecutionProviderType = [](const OrtCustomOp *) -> const char * { return nullptr; };
        GetInputTypeCount = [](const OrtCustomOp *) { return std::strlen(signature.inputs); };
        GetOutputTypeCount = [](const OrtCustomOp *) { return std::strlen(signature.outputs); };
        GetInputType = [](const OrtCustomOp *, size_t i) { return type_of(signature.inputs[i]); };
        GetOutputType = [](const OrtCustomOp *, size_t i) { return type_of(signature.outputs[i]); };
        GetInputCharacteristic = [](const OrtCustomOp *, size_t i) -> int {
            const size_t left = std::strlen(signature.inputs) - i;
            return signature.variadic && left == 1 ? ort::variadic
                   : left <= signature.optional    ? ort::optional
                                                   : ort::required;
        };
        GetOutputCharacteristic = [](const OrtCustomOp *, size_t) -> int { return ort::required; };
        GetInputMemoryType = [](const OrtCustomOp *, size_t) { return 0; };
        GetVariadicInputMinArity = GetVariadicInputHomogeneity = [](const OrtCustomOp *) { return 1; };
        GetVariadicOutputMinArity = GetVariadicOutputHomogeneity = [](const OrtCustomOp *) { return 1; };
        CreateKernelV2 = [](const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *info, void **kernel) {
            return guarded(signature.name, [&] { *kernel = new K(info); });
        };
        KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
            return guarded(signature.name, [&] { static_cast<const K *>(kernel)->compute(context); });
        };
        KernelDestroy = [](void *kernel) { delete static_cast<K *>(kernel); };
        GetStartVersion = [](const OrtCustomOp *) { return 1; };
        GetEndVersion = [](const OrtCustomOp *) { return INT32_MAX; };
        GetMayInplace = [](int **inputs, int **outputs) -> size_t {
            if (signature.inplace_input < 0) return 0;
            *inputs = new int{signature.inplace_input};
            *outputs = new int{signature.inplace_output};
            return 1;
        };
        ReleaseMayInplace = [](int *inputs, int *outputs) {
            delete inputs;
            delete outputs;
        };
        GetAliasMap = [](int **, int **) -> size_t { return 0; };
        ReleaseAliasMap = [](int *, int *) {};
    }
};

void register_operators(OrtSessionOptions *options) {
    static const Operator<Embedding> embedding({"embedding", "iu", "f", 0, false, -1, -1});
    static const Operator<RopeTable> rope_table({"rope_table", "if", "f", 0, false, -1, -1});
    static const Operator<RmsNorm> rms_norm({"rms_norm", "ff", "f", 0, false, -1, -1});
    static const Operator<RmsNormLinear> rms_norm_linear({"rms_norm_linear", "ffu", "f", 0, true, -1, -1});
    static const Operator<RmsNormSwiglu> rms_norm_swiglu({"rms_norm_swiglu", "ffuu", "f", 0, false, -1, -1});
    static const Operator<Linear> linear({"linear", "fuf", "f", 1, false, 2, 0});
    static const Operator<KvAppend> kv_append({"kv_append", "ffiui", "fu", 1, false, 3, 1});
    static const Operator<PagedAttention> attention({"paged_attention", "fiui", "f", 1, false, -1, -1});
    static const Operator<KvKeep> kv_keep({"kv_keep", "iiu", "iu", 0, false, 2, 1});
    OrtCustomOpDomain *domain;  // ours until the end of the process: sessions refer to it
    call<ort::CreateCustomOpDomain>(static_cast<const char *>("edge"), &domain);
    for (const OrtCustomOp *operation : std::initializer_list<const OrtCustomOp *>{
             &embedding, &rope_table, &rms_norm, &rms_norm_linear, &rms_norm_swiglu, &linear, &kv_append,
             &attention, &kv_keep}) {
        call<ort::CustomOpDomain_Add>(domain, operation);
    }
    call<ort::AddCustomOpDomain>(options, domain);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                                                                               const OrtApiBase *base) {
    const OrtApi *const found = base->GetApi(ort::api_version);
    if (found == nullptr) {
        const OrtApi *const oldest = base->GetApi(1);
        return ort::call<ort::CreateStatus>(
            oldest, int(ort::error_fail),
            static_cast<const char *>("The edge operators need ONNX Runtime 1.18 or newer."));
    }
    api = found;
    return guarded("RegisterCustomOps", [&] { register_operators(options); });
}
