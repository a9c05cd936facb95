"""The same for many rows: a matrix becomes plain float16 once, then it is multiplied as such."""

import triton
import triton.language as tl

from edge.executors.cuda.matrices import VARIANTS, name_of
from edge.executors.cuda.operators.dense import TILE
from edge.kernels.entry import Entry
from edge.kernels.kinds import constants_of, scales_of
from edge.kernels.linear import inputs_of, store_outputs
from edge.kernels.tiles import columns_of, magic_of, scales_at, units_of, weights_of


@triton.jit
def dequantize(words, scales, out, tiles, BITS: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr):
    """out float16 [padded rows, padded columns] = the weights as `linear` has them. One program for a tile of
    a band, of `tiles` in each.
    """
    COLUMNS: tl.constexpr = columns_of(BITS)
    WORDS: tl.constexpr = units_of(BITS) * 1024
    tile = tl.program_id(0)
    band = tl.program_id(1)
    codes = tl.load(words + (band.to(tl.int64) * tiles + tile) * WORDS + tl.arange(0, WORDS))
    magic = magic_of(tiles)
    factors = magic
    if BITS < 16:
        factors = tl.load(scales_at(scales, band, tile, tiles, BITS, GROUP, 1))
    weights = weights_of(codes, factors, magic, BITS, ZERO, GROUP, 1)
    row = band.to(tl.int64) * 64 + tl.arange(0, 64)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(out + row[:, None] * (tiles * COLUMNS) + column[None, :], weights)


@triton.jit
def dense(
    x,
    weights,
    out,
    rows,
    outputs,
    columns,
    padded,
    slice_columns,
    side,
    SLICED: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
):
    """out[row, output] = x[row] times row `output` of the weights, slices summed up one after another.

    x float16 [rows, columns], weights float16 [outputs to a multiple of OUTPUTS, padded], out float32 [rows,
    outputs]. SLICED: whether `slice_columns` is less than `padded`. Programs that run at a time make squares
    of `side` row tiles, so that neither all rows nor all weights are read again and again.
    """
    number = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    of_square = side * tl.num_programs(1)
    first = number // of_square * side
    tall = tl.minimum(tl.num_programs(0) - first, side)
    row = (first + number % of_square % tall) * ROWS + tl.arange(0, ROWS)
    output = number % of_square // tall * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, STEP)
    place = weights + output.to(tl.int64)[:, None] * padded + column[None, :]
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    before = total
    left = slice_columns
    for start in range(0, padded, STEP):
        operand = tl.load(place + start)
        total = tl.dot(operand, inputs_of(x, row, rows, start + column, columns), total)
        if SLICED:
            left -= STEP
            if left == 0:
                before += total
                total = tl.zeros((OUTPUTS, ROWS), tl.float32)
                left = slice_columns
    if SLICED:
        total += before
    store_outputs(out, total, 0, row, rows, output, outputs)


_NUMBERS = ("rows", "outputs", "columns", "padded", "slice_columns", "side")
ENTRIES = [
    *(
        Entry(
            f"dequantize.{name_of(layout)}",
            dequantize,
            {"words": "*i32", "scales": scales_of(layout), "out": "*fp16", "tiles": "i32"},
            constants_of(layout),
            warps=8,
        )
        for layout in VARIANTS
    ),
    *(
        Entry(
            name,
            dense,
            {"x": "*fp16", "weights": "*fp16", "out": "*fp32", **dict.fromkeys(_NUMBERS, "i32")},
            {"SLICED": sliced, "ROWS": TILE, "OUTPUTS": TILE, "STEP": 64},
            aligned=("columns", "padded", "slice_columns"),
            warps=8,
            stages=3,
        )
        for name, sliced in (("dense.whole", False), ("dense.sliced", True))
    ),
]
