// The part of ONNX Runtime's C interface that custom operators need, declared by hand: its packages carry no headers.
// ONNX Runtime freezes the place of every function in its table (the version in which it came is in brackets).
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtApi;
struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;
struct OrtMemoryInfo;

struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)();
};

struct OrtAllocator {
    uint32_t version;
    void *(*Alloc)(OrtAllocator *self, size_t bytes);
    void (*Free)(OrtAllocator *self, void *memory);
    const OrtMemoryInfo *(*Info)(const OrtAllocator *self);
};

struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *);
    const char *(*GetName)(const OrtCustomOp *);
    const char *(*GetExecutionProviderType)(const OrtCustomOp *);
    int (*GetInputType)(const OrtCustomOp *, size_t);
    size_t (*GetInputTypeCount)(const OrtCustomOp *);
    int (*GetOutputType)(const OrtCustomOp *, size_t);
    size_t (*GetOutputTypeCount)(const OrtCustomOp *);
    void (*KernelCompute)(void *, OrtKernelContext *);
    void (*KernelDestroy)(void *);
    int (*GetInputCharacteristic)(const OrtCustomOp *, size_t);
    int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t);
    int (*GetInputMemoryType)(const OrtCustomOp *, size_t);
    int (*GetVariadicInputMinArity)(const OrtCustomOp *);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
    OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *, void **);
    OrtStatus *(*KernelComputeV2)(void *, OrtKernelContext *);
    OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *, OrtShapeInferContext *);
    int (*GetStartVersion)(const OrtCustomOp *);
    int (*GetEndVersion)(const OrtCustomOp *);
    size_t (*GetMayInplace)(int **, int **);
    void (*ReleaseMayInplace)(int *, int *);
    size_t (*GetAliasMap)(int **, int **);
    void (*ReleaseAliasMap)(int *, int *);
};

}  // extern "C"

namespace ort {

constexpr uint32_t api_version = 18;

enum Type { type_float = 1, type_uint8 = 2, type_int64 = 7 };
enum Characteristic { required = 0, optional = 1, variadic = 2 };
enum ErrorCode { error_fail = 1, error_invalid_argument = 2 };

enum Function {
    CreateStatus = 0,                         // [1]
    CreateCustomOpDomain = 26,                // [1]
    CustomOpDomain_Add = 27,                  // [1]
    AddCustomOpDomain = 28,                   // [1]
    GetTensorMutableData = 51,                // [1]
    GetDimensionsCount = 61,                  // [1]
    GetDimensions = 62,                       // [1]
    GetTensorTypeAndShape = 65,               // [1]
    KernelInfoGetAttribute_float = 85,        // [1]
    KernelInfoGetAttribute_int64 = 86,        // [1]
    KernelContext_GetInputCount = 88,         // [1]
    KernelContext_GetInput = 90,              // [1]
    KernelContext_GetOutput = 91,             // [1]
    ReleaseStatus = 93,                       // [1]
    ReleaseTensorTypeAndShapeInfo = 99,       // [1]
    ReleaseCustomOpDomain = 101,              // [1]
    ReleaseAllocator = 132,                   // [5]
    KernelInfoGetAttributeArray_int64 = 163,  // [9]
    KernelContext_ParallelFor = 274,          // [17]
    KernelInfoGetAllocator = 278              // [18]
};

// Calls a function of the table; the arguments' types must be exactly those of its declaration.
template <Function index, class... Arguments>
OrtStatus *call(const OrtApi *api, Arguments... arguments) {
    return reinterpret_cast<OrtStatus *(*)(Arguments...)>(
        const_cast<void *>(reinterpret_cast<void *const *>(api)[index]))(arguments...);
}
template <Function index, class Argument>
void release(const OrtApi *api, Argument *argument) {
    reinterpret_cast<void (*)(Argument *)>(const_cast<void *>(reinterpret_cast<void *const *>(api)[index]))(
        argument);
}

}  // namespace ort
