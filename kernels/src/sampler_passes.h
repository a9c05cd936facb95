// The sampler's passes over the whole vocabulary, in blocks of 64, for the best instruction set of this CPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace edge::sampler {

constexpr int64_t kBlock = 64;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline int64_t block_count(int64_t n) { return (n + kBlock - 1) / kBlock; }

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
#define EDGE_LANES 4
#include "sampler_passes_impl.h"
#undef EDGE_LANES
}  // namespace portable

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#define EDGE_LANES 8
#include "sampler_passes_impl.h"
#undef EDGE_LANES
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

inline const Passes &best_passes() {
#if defined(__x86_64__)
    static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2) return avx2::passes;
#endif
    return portable::passes;
}

}  // namespace edge::sampler
