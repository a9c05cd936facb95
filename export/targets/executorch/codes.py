"""Which codes of a matrix XNNPACK can hold. Needs no torch: plans ask it."""

from __future__ import annotations

from edge.quant.layout import PAD_COLUMNS
from edge.quant.scheme import QuantScheme


def keeps_codes(scheme: QuantScheme, columns: int) -> bool:
    """Whether XNNPACK can hold a matrix's own codes: its groups are whole, and int8 has one scale per row."""
    if scheme.is_float:
        return False
    if not fits_four_bits(scheme):
        return scheme.group == 0 and not scheme.minimum
    group = scheme.group or columns
    return columns % group == 0 and group % PAD_COLUMNS == 0


def fits_four_bits(scheme: QuantScheme) -> bool:
    """Whether codes are -8..7 or, with a minimum, 0..15."""
    low, high = scheme.code_range
    return high <= 15 if scheme.minimum else low >= -8 and high <= 7


def has_offsets(scheme: QuantScheme) -> bool:
    """Whether a group of 4-bit codes may need a number beside its scale: for a minimum, or the other sign."""
    low, high = scheme.code_range
    return scheme.minimum or -low > 7 or high > 7
