// The tier of ARM CPUs with the dot products of ARMv8.2.
#include <arm_neon.h>

#include "tiers/freestanding.h"
#include "tiers/kernels.h"

#define EDGE_TIER_NAME "neon-dotprod"
#define EDGE_MAX_TOKENS 4
#define EDGE_BLOCK_TOKENS 4
#define EDGE_NEON_DOTPROD

namespace edge {
namespace {

#include "tiers/simd/neon.h"
#include "tiers/tier.h"

}  // namespace

extern const Kernels kernels_neon_dotprod = table;

}  // namespace edge
