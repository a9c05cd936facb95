"""Matrices of a bundle (`edge.quant.packing`) as those of `tiles.py`, on the device. Reference: `unpack`
there.
"""

import triton
import triton.language as tl

from edge.executors.cuda.matrices import VARIANTS, kind_of, name_of
from edge.kernels.entry import Entry
from edge.kernels.tiles import columns_of, groups_of, scale_of, word_of


@triton.jit
def repack_words(
    source, words, first, rows, columns, group, group_bytes, tile_bytes, units, BITS: tl.constexpr
):
    """Words of the rows from `first` on. One program for a unit of a band, `units` in each; band 0 is that of
    `first`.

    source uint8: `rows` rows in tiles of 16, `tile_bytes` each, of groups of `group` columns, `group_bytes`
    each with its scales. columns: padded to 32. Fields beyond them are 0.
    """
    FIELDS: tl.constexpr = 16 // BITS
    unit = tl.program_id(0)
    band = first // 64 + tl.program_id(1)
    row = tl.arange(0, 64)[:, None, None]
    pair = tl.arange(0, 16)[None, :, None] * 2
    field = tl.arange(0, 2 * FIELDS)[None, None, :]
    column = unit * (32 * FIELDS) + field // 2 * 32 + pair + field % 2
    from_row = band * 64 + row - first
    inside = (from_row >= 0) & (from_row < rows)
    tile = source + (from_row // 16).to(tl.int64) * tile_bytes
    known = inside & (column < columns)
    if BITS == 16:
        found = _half(tile + column * 32 + from_row % 16 * 2, known)
    else:
        # A block of 64 bytes has 4 bytes a row, and a field of each for 4 columns.
        place = column % group
        at = column // group * group_bytes + place // (32 // BITS) * 64 + from_row % 16 * 4 + column % 4
        byte = tl.load(tile + at, mask=known, other=0).to(tl.int32)
        found = byte >> (place % (32 // BITS) // 4 * BITS) & ((1 << BITS) - 1)
    found = tl.sum(found << (field // 2 * BITS + field % 2 * 16), 2, keep_dims=True)
    word, _ = word_of(row, pair, BITS)
    tl.store(words + (band.to(tl.int64) * units + unit) * 1024 + word, found, mask=inside)


@triton.jit
def repack_scales(
    source,
    scales,
    first,
    rows,
    columns,
    group,
    group_bytes,
    tile_bytes,
    tiles,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    MINIMUM: tl.constexpr,
):
    """Scales of the rows from `first` on, one program for a tile of a band, `tiles` in each; see
    `repack_words`. A group of the source may be several here.
    """
    GROUPS: tl.constexpr = groups_of(BITS, GROUP)
    tile = tl.program_id(0)
    band = first // 64 + tl.program_id(1)
    row = tl.arange(0, 64)[:, None]
    part = tl.arange(0, GROUPS)[None, :]
    from_row = band * 64 + row - first
    column = tile * columns_of(BITS) + part * GROUP
    known = (from_row >= 0) & (from_row < rows) & (column < columns)
    begin = column // group * group
    codes = tl.minimum(group, columns - begin) * (2 * BITS)
    at = (
        (from_row // 16).to(tl.int64) * tile_bytes + column // group * group_bytes + codes + from_row % 16 * 2
    )
    value = _half(source + at, known)
    if MINIMUM:
        value |= _half(source + at + 32, known) << 16
    place = (band.to(tl.int64) * tiles + tile) * (64 * GROUPS) + scale_of(row, part, GROUPS)
    tl.store(scales + place, value.to(scales.dtype.element_ty), mask=known)


@triton.jit
def _half(at, known):
    """Two bytes as a number."""
    low = tl.load(at, mask=known, other=0).to(tl.int32)
    return low | tl.load(at + 1, mask=known, other=0).to(tl.int32) << 8


_NUMBERS = ("first", "rows", "columns", "group", "group_bytes", "tile_bytes")
ENTRIES = [
    *(
        Entry(
            f"repack_words.{kind}",
            repack_words,
            {"source": "*u8", "words": "*i32", **dict.fromkeys((*_NUMBERS, "units"), "i32")},
            {"BITS": bits},
        )
        for kind, bits in {kind_of(layout): layout.layout.bits for layout in VARIANTS}.items()
    ),
    *(
        Entry(
            f"repack_scales.{name_of(layout)}",
            repack_scales,
            {
                "source": "*u8",
                "scales": "*i32" if layout.minimum else "*i16",
                **dict.fromkeys((*_NUMBERS, "tiles"), "i32"),
            },
            {"BITS": layout.layout.bits, "GROUP": layout.group, "MINIMUM": layout.minimum},
        )
        for layout in VARIANTS
        if not layout.is_float
    ),
]
