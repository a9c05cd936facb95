// The tier of every 64-bit ARM CPU.
#include <arm_neon.h>

#include "tiers/freestanding.h"
#include "tiers/kernels.h"

#define EDGE_TIER_NAME "neon"
#define EDGE_MAX_TOKENS 4
#define EDGE_BLOCK_TOKENS 4

namespace edge {
namespace {

#include "tiers/simd/neon.h"
#include "tiers/tier.h"

}  // namespace

extern const Kernels kernels_neon = table;

}  // namespace edge
