// The tier of CPUs with AVX2 and its dot products (AVX-VNNI), but without AVX-512.
#include <immintrin.h>

#include "tiers/freestanding.h"
#include "tiers/kernels.h"

#define EDGE_TIER_NAME "avx2vnni"
#define EDGE_MAX_TOKENS 4
#define EDGE_BLOCK_TOKENS 4
#define EDGE_AVX_VNNI

namespace edge {
namespace {

#include "tiers/simd/avx2.h"
#include "tiers/tier.h"

}  // namespace

extern const Kernels kernels_avx2vnni = table;

}  // namespace edge
