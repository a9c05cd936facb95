"""Rows times the transposed matrix, of any kind, for up to some hundred rows. Reference: `torch.nn.Linear`.

The weights are the left operand, so that no two warps make the same ones. Sums are of 16 columns at a time,
in order, whatever the number of rows and the kind: `dense.py` gives the same bits.
"""

import triton
import triton.language as tl

from edge.executors.cuda.matrices import CHUNK, MOST_SLICES, VARIANTS, name_of
from edge.executors.cuda.operators.linear import ROW_TILES
from edge.kernels.entry import Entry
from edge.kernels.kinds import constants_of, scales_of
from edge.kernels.tiles import columns_of, magic_of, scales_at, units_of, weights_of

_CHUNK = tl.constexpr(CHUNK)
_MOST_SLICES = tl.constexpr(MOST_SLICES)


@triton.jit
def linear(
    x,
    words,
    scales,
    out,
    rows,
    outputs,
    columns,
    chunks,
    slice_chunks,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    """out[slice, row, output] = x[row] times row `output` of the matrix, over the columns of a slice.

    One program for ROWS rows, a band and a slice of `slice_chunks` chunks, of `chunks` in all. x float16
    [rows, columns], out float32 [slices, rows, outputs]; words, scales: see `edge.kernels.tiles`.
    """
    COLUMNS: tl.constexpr = columns_of(BITS)
    WORDS: tl.constexpr = units_of(BITS) * 1024
    STEP: tl.constexpr = COLUMNS * TILES
    # With more rows at once Triton would share them out among warps, and all would make the same weights.
    PIECE: tl.constexpr = min(ROWS, 16)
    band = tl.program_id(1)
    part = tl.program_id(2)
    tiles = chunks * (_CHUNK // COLUMNS)
    place = words + band.to(tl.int64) * tiles * WORDS + tl.arange(0, WORDS * TILES)
    row = tl.program_id(0) * ROWS + tl.arange(0, PIECE)
    column = tl.arange(0, STEP)
    total = tl.zeros((64, PIECE), tl.float32)
    more = total
    magic = magic_of(rows)
    if BITS < 16 and GROUP == 0:
        of_rows = tl.load(scales_at(scales, band, 0, tiles, BITS, GROUP, TILES))
    else:
        of_rows = magic
    stop = tl.minimum((part + 1) * slice_chunks * _CHUNK, columns)
    for start in range(part * slice_chunks * _CHUNK, stop, STEP):
        tile = start // COLUMNS
        codes = tl.load(place + tile * WORDS)
        factors = of_rows
        if GROUP:
            factors = tl.load(scales_at(scales, band, tile, tiles, BITS, GROUP, TILES))
        weights = weights_of(codes, factors, magic, BITS, ZERO, GROUP, TILES)
        total = tl.dot(weights, inputs_of(x, row, rows, start + column, columns), total)
        if PIECE < ROWS:
            more = tl.dot(weights, inputs_of(x, row + PIECE, rows, start + column, columns), more)
    output = band * 64 + tl.arange(0, 64)
    store_outputs(out, total, part * rows, row, rows, output, outputs)
    if PIECE < ROWS:
        store_outputs(out, more, part * rows, row + PIECE, rows, output, outputs)


@triton.jit
def inputs_of(x, row, rows, column, columns):
    """float16 [columns, rows] of x, zeros beyond its edges."""
    inside = (row < rows)[None, :] & (column < columns)[:, None]
    return tl.load(x + row[None, :] * columns + column[:, None], mask=inside, other=0.0)


@triton.jit
def store_outputs(out, total, before, row, rows, output, outputs):
    """total [outputs, rows] into rows of `out`, which `before` others stand before."""
    at = (before + row)[None, :] * outputs + output[:, None]
    tl.store(out + at, total, mask=(row < rows)[None, :] & (output < outputs)[:, None])


@triton.jit
def summed(partials, slices, size, at, inside):
    """Numbers `at` of the slices that `linear` left, added in order; a slice has `size` numbers. All are
    asked for at once, so that their latencies overlap.
    """
    total = tl.load(partials + at, mask=inside, other=0.0)
    seen = tl.where(inside, slices, 0)
    for part in tl.static_range(1, _MOST_SLICES):
        total += tl.load(partials + part * size.to(tl.int64) + at, mask=seen > part, other=0.0)
    return total


def _entry(layout, rows):
    bits = layout.layout.bits
    numbers = ("rows", "outputs", "columns", "chunks", "slice_chunks")
    return Entry(
        f"linear.{name_of(layout)}.r{rows}",
        linear,
        {
            "x": "*fp16",
            "words": "*i32",
            "scales": scales_of(layout),
            "out": "*fp32",
            **dict.fromkeys(numbers, "i32"),
        },
        # Steps of 8 KiB of words, or 4 where more would take too much shared memory.
        {**constants_of(layout), "ROWS": rows, "TILES": 2 if bits == 4 and rows < 32 else 1},
        aligned=("columns",),
        stages=4,
        registers=128 if bits > 2 and rows == 32 else None,
    )


ENTRIES = [_entry(layout, rows) for layout in VARIANTS for rows in ROW_TILES]
