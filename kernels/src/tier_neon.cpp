#include <arm_neon.h>

#include "freestanding.h"
#include "kernels.h"

#define EDGE_TIER_NAME "neon"
#define EDGE_MAX_TOKENS 4
#define EDGE_BLOCK_TOKENS 4

namespace edge {
namespace {

#include "simd/neon.h"
#include "tier.h"

}  // namespace

extern const Kernels kernels_neon = table;

}  // namespace edge
