#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#define EDGE_TIER_NAME "amx"
#define EDGE_MAX_INTERLEAVED 8
#define EDGE_AMX

namespace edge {
namespace {

#include "simd/avx512.h"
#include "tier.h"

}  // namespace

extern const Kernels kernels_amx = table;

}  // namespace edge
