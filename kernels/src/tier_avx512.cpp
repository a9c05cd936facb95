#include <immintrin.h>

#include "freestanding.h"
#include "kernels.h"

#define EDGE_TIER_NAME "avx512vnni"
#define EDGE_MAX_TOKENS 8
#define EDGE_BLOCK_TOKENS 6

namespace edge {
namespace {

#include "simd/avx512.h"
#include "tier.h"

}  // namespace

extern const Kernels kernels_avx512 = table;

}  // namespace edge
