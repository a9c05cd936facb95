"""How matrices stand on a GPU: words of 32 bits, each where the tensor cores' left operand wants it.

A matrix is cut into bands of 64 rows (the last one padded) and a band into tiles (columns padded to 256), one
after another. A tile has 128 columns of int4 or int8, 256 of ternary or 64 of float16, in one or two units of
1024 words. A word belongs to one row and holds pairs of neighbouring columns: fields of BITS bits, of which
number f stands at bit BITS * f for the even column and 16 bits higher for the odd one. With

    word = 512 * h + 128 * w + 16 * g + 4 * t + 2 * k + b    (h, k, b < 2; w, t < 4; g < 8)

the row in the band is 16 * w + 8 * b + g and the even column in the unit 32 * f + 16 * h + 8 * k + 2 * t:
what lane 4 * g + t of warp w holds of a 64-row operand of `mma.m16n8k16`, in the order of its registers, so
that loads of 16 bytes a thread need no exchange between threads. Scales are [band, tile, w, g, group of the
tile, b], or [band, w, g, b] where a row has one: float16, or with a minimum int32, the minimum in the upper
half. Of rows that are padding all bits are zero, and so are the weights.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def units_of(bits):
    """Units of a tile."""
    return 2 if bits > 4 else 1


@triton.constexpr_function
def columns_of(bits):
    """Columns of a tile."""
    return units_of(bits) * 32 * (16 // bits)


@triton.constexpr_function
def groups_of(bits, group):
    """Scales of a row in a tile; 1 where it has one in all."""
    return columns_of(bits) // group if group else 1


@triton.jit
def magic_of(number):
    """1024 and 1024 as float16, made of a whole number >= 0 in a way that no compiler sees through: with a
    constant it would make two instructions of each mask, and take the halves of a word apart.
    """
    return 0x64006400 | (number >> 31)


@triton.jit
def weights_of(
    words, scales, magic, BITS: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr, TILES: tl.constexpr
):
    """float16 [64, columns of TILES tiles]: scale * (field - ZERO), or scale * field + minimum, rounded once.

    words int32, in one dimension. scales: loaded from `scales_at`. magic: of `magic_of`.
    """
    FIELDS: tl.constexpr = 16 // BITS
    UNITS: tl.constexpr = units_of(BITS)
    values = _fields_of(tl.reshape(words, (TILES * UNITS, 2, 4, 8, 4, 2, 2)), magic, BITS, ZERO)
    values = tl.reshape(values, (TILES * UNITS, 2, 4, 8, 4, 2, 2, 2, FIELDS))
    values = tl.permute(values, (2, 6, 3, 0, 8, 1, 5, 4, 7))
    if BITS < 16:
        GROUPS: tl.constexpr = groups_of(BITS, GROUP)
        SEEN: tl.constexpr = TILES if GROUP else 1
        values = tl.reshape(values, (4, 2, 8, TILES, GROUPS, UNITS * FIELDS // GROUPS, 4, 4, 2))
        factors = tl.permute(tl.reshape(scales, (SEEN, 4, 8, 4, GROUPS, 2)), (1, 5, 2, 0, 4, 3))
        factors = tl.reshape(factors, (4, 2, 8, SEEN, GROUPS, 1, 1, 4, 1))
        if scales.dtype == tl.int32:
            values = tl.fma(values, _low(factors), _low(factors >> 16))
        else:
            values = values * factors
    return tl.reshape(values, (64, TILES * UNITS * FIELDS * 32))


@triton.jit
def scales_at(scales, band, tile, tiles, BITS: tl.constexpr, GROUP: tl.constexpr, TILES: tl.constexpr):
    """Pointers to what each lane needs of the scales of TILES tiles of a band; of its rows where GROUP is 0.
    tiles: of a band.
    """
    GROUPS: tl.constexpr = groups_of(BITS, GROUP)
    index = tl.arange(0, 256 * GROUPS)
    # Four lanes (t) want the same ones.
    place = index // (8 * GROUPS) * (2 * GROUPS) + index % (2 * GROUPS)
    first = band * tiles + tile + tl.arange(0, TILES) if GROUP else band + tl.arange(0, 1)
    return scales + first[:, None] * (64 * GROUPS) + place[None, :]


@triton.jit
def word_of(row, column, BITS: tl.constexpr):
    """(word in its unit, bit in the word) of a row of a band and a column of a unit."""
    word = column // 16 % 2 * 512 + row // 16 * 128 + row % 8 * 16
    word += column // 2 % 4 * 4 + column // 8 % 2 * 2 + row // 8 % 2
    return word, column // 32 * BITS + column % 2 * 16


@triton.jit
def scale_of(row, part, groups):
    """Number of the scale of a row of a band and a group of a tile, among those of both."""
    return row // 16 * (16 * groups) + row % 8 * (2 * groups) + part * 2 + row // 8 % 2


@triton.jit
def _fields_of(words, magic, BITS: tl.constexpr, ZERO: tl.constexpr):
    """float16 [..., 2, and 2 for each doubling of the fields]: their dimensions are one, in order."""
    if BITS == 16:
        values = _halves(words)
    elif BITS == 8:
        values = _every(words, magic, 0, 1, BITS, ZERO)
    elif BITS == 4:
        values = tl.join(_every(words, magic, 0, 2, BITS, ZERO), _every(words, magic, 1, 2, BITS, ZERO))
    else:
        even = tl.join(_every(words, magic, 0, 4, BITS, ZERO), _every(words, magic, 2, 4, BITS, ZERO))
        odd = tl.join(_every(words, magic, 1, 4, BITS, ZERO), _every(words, magic, 3, 4, BITS, ZERO))
        values = tl.join(even, odd)
    return values


@triton.jit
def _every(words, magic, FIRST: tl.constexpr, STRIDE: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr):
    """Fields FIRST and FIRST + STRIDE."""
    return tl.join(
        _field_of(words, magic, FIRST, BITS, ZERO), _field_of(words, magic, FIRST + STRIDE, BITS, ZERO)
    )


@triton.jit
def _field_of(words, magic, FIELD: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr):
    """field - ZERO of the two columns of words, float16 [..., 2], exact: as the low bits of the mantissa of a
    number from 1024 to 2047 a field needs no conversion.
    """
    SHIFT: tl.constexpr = FIELD * BITS % 8
    MASK: tl.constexpr = ((1 << BITS) - 1) << SHIFT
    # The shift by nothing is one more thing that no compiler may see through.
    words = words >> (8 if FIELD * BITS >= 8 else (magic & 1))
    values = _halves((words & (MASK * 0x10001)) | magic)
    return tl.fma(values, 1.0 / (1 << SHIFT), -(1024.0 / (1 << SHIFT) + ZERO))


@triton.jit
def _halves(words):
    """The two float16 of words, [..., 2]."""
    return tl.join(_low(words), _low(words >> 16))


@triton.jit
def _low(words):
    """The float16 in the lower half of words."""
    return words.to(tl.int16).to(tl.float16, bitcast=True)
