// The sampler's passes over the whole vocabulary, for the best instruction set of this CPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace edge::sampler {

constexpr int64_t block_size = 128;  // of logits, with one peak
constexpr int64_t chunk_size = 512;  // of weights, with one sum
constexpr float infinity = std::numeric_limits<float>::infinity();

inline int64_t block_count(int64_t n) { return (n + block_size - 1) / block_size; }
inline int64_t chunk_count(int64_t n) { return (n + chunk_size - 1) / chunk_size; }

struct Mass {
    double sum;
    int64_t count;
};

struct Passes {
    bool (*max)(const float *x, int64_t n, float *peaks);
    double (*weigh)(const float *x, int64_t n, float max, float inverse_temperature, float *weights,
                    float *sums);
    Mass (*mass)(const float *weights, int64_t n, float low, float high);
    double (*keep)(float *weights, int64_t n, float low, float high, float *sums);
    double (*moment)(const float *x, int64_t n, float max, const float *weights);
};

namespace portable {
#define EDGE_VECTOR_LANES 4
#include "sampler/passes_impl.h"
#undef EDGE_VECTOR_LANES
}  // namespace portable

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
namespace avx2 {
#define EDGE_VECTOR_LANES 8
#include "sampler/passes_impl.h"
#undef EDGE_VECTOR_LANES
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq")
#endif
namespace avx512 {
#define EDGE_VECTOR_LANES 16
#include "sampler/passes_impl.h"
#undef EDGE_VECTOR_LANES
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

inline const Passes &best_passes() {
#if defined(__x86_64__)
    static const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
    static const bool has_avx2 = __builtin_cpu_supports("avx2");
    if (has_avx512) return avx512::passes;
    if (has_avx2) return avx2::passes;
#endif
    return portable::passes;
}

}  // namespace edge::sampler
