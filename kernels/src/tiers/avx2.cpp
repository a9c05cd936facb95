// The tier of CPUs with AVX2, FMA and F16C.
#include <immintrin.h>

#include "tiers/freestanding.h"
#include "tiers/kernels.h"

#define EDGE_TIER_NAME "avx2"
#define EDGE_MAX_TOKENS 4
#define EDGE_BLOCK_TOKENS 4

namespace edge {
namespace {

#include "tiers/simd/avx2.h"
#include "tiers/tier.h"

}  // namespace

extern const Kernels kernels_avx2 = table;

}  // namespace edge
