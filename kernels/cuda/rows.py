"""Chosen rows of a matrix as one of their own, for a head over the tokens that drafts may guess."""

import triton
import triton.language as tl

from edge.kernels.entry import Entry
from edge.kernels.tiles import scale_of, word_of


@triton.jit
def take_words(ids, words, out, rows, units):
    """Words of row ids[i] become those of row i, one program for a unit of a band of `out`. ids int32 [rows];
    units: of a band.
    """
    unit = tl.program_id(0)
    row, source, inside = _rows(ids, rows)
    pair = tl.arange(0, 16)[None, :] * 2
    # Where a field stands in its word is the same in both: any number of bits will do.
    to, _ = word_of(row % 64, pair, 16)
    place, _ = word_of(source % 64, pair, 16)
    found = tl.load(words + ((source // 64) * units + unit) * 1024 + place, mask=inside, other=0)
    tl.store(out + ((row // 64) * units + unit) * 1024 + to, found, mask=inside)


@triton.jit
def take_scales(ids, scales, out, rows, tiles, groups):
    """The same for scales, one program for a tile of a band of `out`. groups: of a tile, at most 8."""
    tile = tl.program_id(0)
    row, source, inside = _rows(ids, rows)
    part = tl.arange(0, 8)[None, :]
    inside &= part < groups
    to = scale_of(row % 64, part, groups)
    place = scale_of(source % 64, part, groups)
    found = tl.load(scales + ((source // 64) * tiles + tile) * 64 * groups + place, mask=inside, other=0)
    tl.store(out + ((row // 64) * tiles + tile) * 64 * groups + to, found, mask=inside)


@triton.jit
def _rows(ids, rows):
    """(row, the one that it is a copy of, whether there is such a row) of a band, int64 [64, 1]."""
    row = (tl.program_id(1) * 64 + tl.arange(0, 64))[:, None].to(tl.int64)
    inside = row < rows
    return row, tl.load(ids + row, mask=inside, other=0).to(tl.int64), inside


def _scales(name, pointer):
    signature = {
        "ids": "*i32",
        "scales": pointer,
        "out": pointer,
        "rows": "i32",
        "tiles": "i32",
        "groups": "i32",
    }
    return Entry(name, take_scales, signature)


ENTRIES = [
    Entry(
        "take_words",
        take_words,
        {"ids": "*i32", "words": "*i32", "out": "*i32", "rows": "i32", "units": "i32"},
    ),
    _scales("take_scales.16", "*i16"),
    _scales("take_scales.32", "*i32"),
]
