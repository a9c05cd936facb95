// All kernels of one tier, written once over the sixteen lanes of simd/*.h. Included by tiers/*.cpp inside an
// anonymous namespace, so that no code of one tier can be linked into another.

#include "tiers/rotation.h"

// rotates what becomes 4 bits
#include "tiers/codes.h"
#include "tiers/dots.h"
#include "tiers/elementwise.h"
#include "tiers/linear_block.h"
#include "tiers/quantize.h"
// few tokens, and the choice between the two
#include "tiers/linear.h"
#include "tiers/peaks.h"

// what both kinds of attention share
#include "tiers/attention_tiles.h"

// uses the codes
#include "tiers/attention_codes.h"

// the choice between the two
#include "tiers/attention.h"

// uses the scores of attention
#include "tiers/sparse.h"

constexpr Kernels table = {EDGE_TIER_NAME,
                           max_tokens,
                           streamed_tokens,
                           direct_tokens,
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
                           quantize_int8,
                           quantize_int4,
                           quantize_key,
                           quantize_value,
                           rotate,
                           prepare_queries,
                           attend,
                           merge,
                           add_keys,
                           score_windows,
                           sum_powers,
                           add_weights,
                           all_finite,
                           int8_peak,
                           float_peak,
                           int8_peak_operations,
                           float_peak_operations};
