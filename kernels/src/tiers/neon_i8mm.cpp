// The tier of ARM CPUs with the matrix instructions of ARMv8.6.
#include <arm_neon.h>

#include "tiers/freestanding.h"
#include "tiers/kernels.h"

#define EDGE_TIER_NAME "neon-i8mm"
#define EDGE_MAX_TOKENS 4
#define EDGE_BLOCK_TOKENS 4
#define EDGE_NEON_DOTPROD

namespace edge {
namespace {

#include "tiers/simd/neon.h"
// the sums of many tokens
#include "tiers/simd/neon_i8mm.h"
#include "tiers/tier.h"

}  // namespace

extern const Kernels kernels_neon_i8mm = table;

}  // namespace edge
