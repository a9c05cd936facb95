"""Rotary position embedding of queries and keys, and what stores keys and values in their pages.

Reference: `edge.model.network.rope`. int8 rows are rounded as those of the CPU cache (`quantize_int8` in
kernels/src/tiers/codes.h), with a scale that is kept as float16.
"""

import triton
import triton.language as tl

from edge.executors.cuda.operators.pages import HEAD_DIMS
from edge.kernels.entry import Entry
from edge.kernels.paths import VARIANTS, row_of_page

HALF_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: added, it rounds to whole numbers, halves to even


@triton.jit
def angles(positions, inverse_frequency, into, scale, HALF: tl.constexpr):
    """into[i] = scale * (cos, sin) of float32(positions[i]) * inverse_frequency; one program a row.

    positions int32 [rows], inverse_frequency float32 [HALF], into float32 [rows, 2 HALF]. The GPU's own sine
    is for small angles only, so: less the nearest multiple of pi / 2 (Cody and Waite, exact to 24 bits for a
    million turns), then the polynomials of Cephes' sinf and cosf.
    """
    row = tl.program_id(0)
    d = tl.arange(0, HALF)
    angle = tl.load(positions + row).to(tl.float32) * tl.load(inverse_frequency + d)
    quarters = tl.fma(angle, 0.63661977236, HALF_ROUND) - HALF_ROUND
    x = tl.fma(quarters, -1.57079601287841796875, angle)
    x = tl.fma(quarters, -3.1391647326017846353352069854736328125e-07, x)
    x = tl.fma(quarters, -5.390302529957764765544681040410068817436695098876953125e-15, x)
    square = x * x
    sine = tl.fma(square, -1.9515295891e-4, 8.3321608736e-3)
    sine = tl.fma(tl.fma(square, sine, -1.6666654611e-1) * square, x, x)
    cosine = tl.fma(square, 2.443315711809948e-5, -1.388731625493765e-3)
    cosine = tl.fma(square, cosine, 4.166664568298827e-2)
    cosine = tl.fma(square * square, cosine, tl.fma(square, -0.5, 1.0))
    quadrant = quarters.to(tl.int32) & 3
    swapped = (quadrant & 1) != 0
    cos_of = tl.where(swapped, sine, cosine)
    sin_of = tl.where(swapped, cosine, sine)
    cos_of = tl.where((quadrant == 1) | (quadrant == 2), -cos_of, cos_of)
    sin_of = tl.where(quadrant >= 2, -sin_of, sin_of)
    at = into + row.to(tl.int64) * 2 * HALF + d
    tl.store(at, cos_of * scale)
    tl.store(at + HALF, sin_of * scale)


@triton.jit
def store_row(first, second, pool, scales, index, HALF: tl.constexpr):
    """A row of float32 in two halves to row `index` of a pool: as float16, or as int8 with its scale."""
    at = pool + index * 2 * HALF + tl.arange(0, HALF)
    if pool.dtype.element_ty == tl.int8:
        largest = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), 0)
        largest += tl.sum(first * 0.0 + second * 0.0, 0)  # NaN if one of them is not finite
        finite = largest <= 3.4e38
        inverse = tl.math.div_rn(127.0, largest)
        usable = finite & (largest > 0.0) & (inverse <= 3.0e38)
        factor = tl.where(usable, inverse, 0.0)
        scale = tl.where(usable, tl.math.div_rn(largest, 127.0), 0.0)
        tl.store(scales + index, tl.where(finite, scale, float("nan")).to(tl.float16))
        first = tl.where(usable, tl.fma(first, factor, HALF_ROUND) - HALF_ROUND, 0.0)
        second = tl.where(usable, tl.fma(second, factor, HALF_ROUND) - HALF_ROUND, 0.0)
    tl.store(at, first.to(pool.dtype.element_ty))
    tl.store(at + HALF, second.to(pool.dtype.element_ty))


@triton.jit
def rope(
    partial,
    angles,
    q,
    keys,
    values,
    key_scales,
    value_scales,
    sequences,
    slots,
    page_table,
    max_pages,
    slices,
    heads,
    kv_heads,
    HALF: tl.constexpr,
):
    """One head of one row by each program [rows, heads + 2 kv_heads]; see the wrapper."""
    row, head = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(sequences + row)
    if sequence < 0:
        return
    d = tl.arange(0, HALF)
    columns = (heads + 2 * kv_heads) * 2 * HALF
    at = partial + row.to(tl.int64) * columns + head * 2 * HALF + d
    first, second = tl.load(at), tl.load(at + HALF)
    for _ in range(1, slices):
        at += tl.num_programs(0).to(tl.int64) * columns
        first += tl.load(at)
        second += tl.load(at + HALF)
    # Biases would be added here, and each head's norm follow.
    if head < heads + kv_heads:
        cos = tl.load(angles + row * 2 * HALF + d)
        sin = tl.load(angles + row * 2 * HALF + HALF + d)
        turned = tl.fma(first, cos, -(second * sin))
        second = tl.fma(second, cos, first * sin)
        first = turned
    if head < heads:
        into = q + (row.to(tl.int64) * heads + head) * 2 * HALF + d
        tl.store(into, first.to(tl.float16))
        tl.store(into + HALF, second.to(tl.float16))
        return
    slot = tl.load(slots + row)
    kv_head = (head - heads) % kv_heads
    index = row_of_page(page_table + sequence * max_pages, slot, kv_head, kv_heads)
    if head < heads + kv_heads:
        store_row(first, second, keys, key_scales, index, HALF)
    else:
        store_row(first, second, values, value_scales, index, HALF)


ENTRIES = [
    *(
        Entry(
            f"rope.angles.d{head_dim}",
            angles,
            {"positions": "*i32", "inverse_frequency": "*fp32", "into": "*fp32", "scale": "fp32"},
            {"HALF": head_dim // 2},
            warps=1,
        )
        for head_dim in HEAD_DIMS
    ),
    *(
        Entry(
            f"rope.{variant.name}",
            rope,
            {
                **{"partial": "*fp32", "angles": "*fp32", "q": "*fp16"},
                **variant.pools,
                **dict.fromkeys(("sequences", "slots", "page_table"), "*i32"),
                **dict.fromkeys(("max_pages", "slices", "heads", "kv_heads"), "i32"),
            },
            {"HALF": variant.head_dim // 2},
            warps=1,
        )
        for variant in VARIANTS
    ),
]
