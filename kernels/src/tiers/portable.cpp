// The tier of every CPU, without intrinsics: what the others are tested against.
#include "tiers/freestanding.h"
#include "tiers/kernels.h"

#define EDGE_TIER_NAME "portable"
#define EDGE_MAX_TOKENS 4
#define EDGE_BLOCK_TOKENS 4

namespace edge {
namespace {

#include "tiers/simd/portable.h"
#include "tiers/tier.h"

}  // namespace

extern const Kernels kernels_portable = table;

}  // namespace edge
