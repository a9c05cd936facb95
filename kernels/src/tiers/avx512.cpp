// The tier of CPUs with AVX-512 and its dot products (VNNI).
#include <immintrin.h>

#include "tiers/freestanding.h"
#include "tiers/kernels.h"

#define EDGE_TIER_NAME "avx512vnni"
#define EDGE_MAX_TOKENS 8
#define EDGE_BLOCK_TOKENS 6

namespace edge {
namespace {

#include "tiers/simd/avx512.h"
#include "tiers/tier.h"

}  // namespace

extern const Kernels kernels_avx512 = table;

}  // namespace edge
