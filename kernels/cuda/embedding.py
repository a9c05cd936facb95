"""Rows of the embedding as the residual stream. Reference: `edge.model.network.decoder.Backbone`."""

import triton
import triton.language as tl

from edge.executors.cuda.matrices import VARIANTS, name_of
from edge.executors.cuda.operators.embedding import BLOCK
from edge.kernels.entry import Entry
from edge.kernels.kinds import constants_of, scales_of
from edge.kernels.tiles import columns_of, groups_of, scale_of, units_of, word_of


@triton.jit
def embed(
    tokens,
    words,
    scales,
    stream,
    columns,
    tiles,
    factor,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """stream[i] = factor * row tokens[i] of the matrix, in float32; one program for BLOCK columns of a row.

    tokens int32 [rows], stream float32 [rows, columns]; words, scales: see `edge.kernels.tiles`. tiles: of a
    band.
    """
    COLUMNS: tl.constexpr = columns_of(BITS)
    WIDTH: tl.constexpr = 32 * (16 // BITS)
    GROUPS: tl.constexpr = groups_of(BITS, GROUP)
    place = tl.program_id(1)
    token = tl.load(tokens + place)
    band = (token // 64).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    word, bit = word_of(token % 64, column % WIDTH, BITS)
    unit = band * tiles * units_of(BITS) + column // WIDTH
    found = tl.load(words + unit * 1024 + word, mask=inside, other=0) >> bit
    if BITS == 16:
        values = found.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        values = (found & ((1 << BITS) - 1)).to(tl.float32) - ZERO
        if GROUP:
            at = (band * tiles + column // COLUMNS) * (64 * GROUPS)
            at += scale_of(token % 64, column % COLUMNS // GROUP, GROUPS)
        else:
            at = band * 64 + scale_of(token % 64, column * 0, GROUPS)
        scale = tl.load(scales + at, mask=inside, other=0)
        if scale.dtype == tl.int32:
            minimum = (scale >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            values = tl.fma(values, scale.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32), minimum)
        else:
            values = values * scale.to(tl.float32)
    tl.store(stream + place.to(tl.int64) * columns + column, values * factor, mask=inside)


ENTRIES = [
    Entry(
        f"embed.{name_of(layout)}",
        embed,
        {
            "tokens": "*i32",
            "words": "*i32",
            "scales": scales_of(layout),
            "stream": "*fp32",
            "columns": "i32",
            "tiles": "i32",
            "factor": "fp32",
        },
        {**constants_of(layout), "BLOCK": BLOCK},
        aligned=("columns",),
    )
    for layout in VARIANTS
]
