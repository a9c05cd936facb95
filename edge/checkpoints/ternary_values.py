"""Finds ternary weights behind a float type: fake-quantized checkpoints such as BitCPM4's.

In training with quantized weights every group of a row holds only -s, 0 and s, and is saved as such in a
float type. The group is found in the values themselves; no name or config has to be believed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge.quant.layout import PAD_COLUMNS
from edge.quant.scheme import QuantScheme

Floats = npt.NDArray[np.float32]

_SAMPLE_ROWS = 8
_BLOCK_WEIGHTS = 1 << 22
_ROUNDING = 2.0**-11  # of a float16 number that is neither subnormal nor too large, at most


class TernaryValues(NamedTuple):
    """What a float matrix was found to be.

    scheme: with the largest group that holds it. exact: whether its scales are float16 numbers; those of
    bfloat16 checkpoints are, those of float32 ones are rounded, by 2^-11 of their size at most.
    """

    scheme: QuantScheme
    exact: bool


def find_ternary(rows: int, read_rows: Callable[[slice], Floats]) -> TernaryValues | None:
    """What the matrix is, None if it is not ternary or float16 is too coarse for its scales (below 6e-5).

    read_rows: some rows of the matrix as float32. A few rows rule out nearly every other matrix; only a
    ternary one is read as a whole. A negative zero counts as zero.
    """
    step = max(rows // _SAMPLE_ROWS, 1)
    if not _candidates(read_rows(slice(0, rows, step)), None):
        return None
    found: list[int] | None = None
    any_weight, exact = False, True
    block = max(1, _BLOCK_WEIGHTS // max(1, read_rows(slice(0, 1)).shape[1]))
    for start in range(0, rows, block):
        part = read_rows(slice(start, start + block))
        found = _candidates(part, found)
        if not found:
            return None
        any_weight = any_weight or bool(part.any())
        exact = exact and np.array_equal(part.astype(np.float16), part)
    return TernaryValues(QuantScheme("ternary", found[0]), exact) if found and any_weight else None


def _candidates(matrix: Floats, among: list[int] | None) -> list[int]:
    """The groups (0: whole rows; then from large to small) in which no two weights differ in size.

    among: the groups still possible, None for all.
    """
    columns = matrix.shape[1]
    if among is None:
        among = [0, *range((columns - 1) // PAD_COLUMNS * PAD_COLUMNS, 0, -PAD_COLUMNS)]
    magnitude = np.abs(matrix)
    with np.errstate(over="ignore", invalid="ignore"):
        rounding = np.abs(magnitude.astype(np.float16) - magnitude)
        if not (rounding <= _ROUNDING * magnitude).all():  # nor where a value is not finite
            return []
    rows, at = np.nonzero(magnitude)
    sizes = magnitude[rows, at]
    # Neighbours among a row's weights that are not zero: where they differ in size a new group must begin.
    changes = (rows[1:] == rows[:-1]) & (sizes[1:] != sizes[:-1])
    first, second = at[:-1][changes], at[1:][changes]
    if np.any(first // PAD_COLUMNS == second // PAD_COLUMNS):
        return []
    pairs = np.unique(first * columns + second)
    first, second = pairs // columns, pairs % columns
    return [
        group
        for group in among
        if not first.size or (group and bool((first // group != second // group).all()))
    ]
