#include <arm_neon.h>

#include "freestanding.h"
#include "kernels.h"

#define EDGE_TIER_NAME "neon-i8mm"
#define EDGE_MAX_TOKENS 4
#define EDGE_BLOCK_TOKENS 4
#define EDGE_NEON_DOTPROD

namespace edge {
namespace {

#include "simd/neon.h"
// the sums of many tokens
#include "simd/neon_i8mm.h"
#include "tier.h"

}  // namespace

extern const Kernels kernels_neon_i8mm = table;

}  // namespace edge
