// All kernels of one tier, written once over the sixteen lanes of simd/*.h. Included by tier_*.cpp inside an
// anonymous namespace, so that no code of one tier can be linked into another.

#include "tier_elementwise.h"
#include "tier_linear_block.h"
#include "tier_quantize.h"
// few tokens, and the choice between the two
#include "tier_linear.h"
#include "tier_peaks.h"
// attention uses the exponential of the elementwise kernels
#include "tier_attention.h"

constexpr Kernels table = {EDGE_TIER_NAME,
                           max_tokens,
                           block_tokens,
                           block_tiles,
                           sum_bias,
                           128 - biased_offset,
                           linear,
                           quantize,
                           sum_blocks,
                           rms_norm,
                           swiglu,
                           rope,
                           to_half,
                           attend,
                           merge,
                           all_finite,
                           int8_peak,
                           float_peak,
                           int8_peak_operations,
                           float_peak_operations};
