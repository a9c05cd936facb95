"""Rows of a packed matrix, gathered into another one without unpacking: the same codes and scales to the bit.

What stands in a tile of 16 rows is, throughout, a sequence of units in which every row has its own lane: 4
bytes of codes, a float16 scale or minimum, a float16 weight (`edge.quant.packing`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import BundleError
from edge.quant.layout import LANE, PAD_COLUMNS, TILE_ROWS
from edge.quant.packing import split_groups
from edge.quant.scheme import PackedMatrix, QuantizedMatrix, QuantScheme

Matrix = npt.NDArray[np.float32] | QuantizedMatrix | PackedMatrix

_BLOCK_BYTES = 32 << 20


def gather_rows(
    data: npt.NDArray[np.uint8], scheme: QuantScheme, shape: tuple[int, int], rows: npt.ArrayLike
) -> PackedMatrix:
    """The matrix whose row i is row `rows[i]` of a packed one.

    data: the packed matrix of that shape, (rows, columns). rows: whole numbers, in any order. The result is
    what unpacking, taking the rows and packing again would give. BundleError for a row that does not exist.
    """
    wanted = np.asarray(rows, np.int64)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < shape[0]:
        outside = int(wanted[(wanted < 0) | (wanted >= shape[0])][0])
        raise BundleError(f"Row {outside} lies outside a matrix of {shape[0]} rows.")
    count, columns = wanted.size, shape[1]
    if count == 0:
        raise BundleError("No rows were asked for, so there is no matrix; name one at least.")
    out = np.zeros(scheme.packed_bytes(count, columns), np.uint8)
    padding = np.uint32(0x01010101 * sum(scheme.packing.zero << shift for shift in _shifts(scheme)))
    for source, target, fill in _units(data, out, scheme, shape[0], count, columns, padding):
        step = max(_BLOCK_BYTES // (source[0, ..., 0].nbytes * TILE_ROWS), 1)  # whole tiles of the result
        for tile in range(0, len(target), step):
            part = wanted[tile * TILE_ROWS : (tile + step) * TILE_ROWS]
            lanes = source[part // TILE_ROWS, ..., part % TILE_ROWS]
            missing = -len(part) % TILE_ROWS
            if missing:
                lanes = np.concatenate([lanes, np.full((missing, *lanes.shape[1:]), fill, lanes.dtype)])
            tiles = lanes.reshape(-1, TILE_ROWS, *lanes.shape[1:])
            target[tile : tile + step] = np.moveaxis(tiles, 1, -1)
    return PackedMatrix(scheme, (count, columns), out)


def rows_of(values: Matrix, rows: npt.NDArray[np.integer]) -> Matrix:
    """Some rows of a matrix in whatever form."""
    if isinstance(values, PackedMatrix):
        return gather_rows(values.data, values.scheme, values.shape, rows)
    if isinstance(values, QuantizedMatrix):
        minimums = None if values.minimums is None else values.minimums[rows]
        return QuantizedMatrix(values.scheme, values.codes[rows], values.scales[rows], minimums)
    return values[rows]


def _shifts(scheme: QuantScheme) -> range:
    """Where the fields of a byte of codes begin."""
    layout = scheme.packing.layout
    return range(0, 8, layout.bits) if layout.floats is None else range(0)


def _units(
    data: npt.NDArray[np.uint8],
    out: npt.NDArray[np.uint8],
    scheme: QuantScheme,
    rows: int,
    count: int,
    columns: int,
    padding: np.uint32,
) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any], Any]]:
    """Views of the same parts of both packed matrices, [tiles, ..., 16 rows], and what pads their rows."""
    if scheme.packing.layout.floats is not None:
        if not scheme.packing.layout.tiled:
            raise BundleError(f"Rows of a matrix of {scheme} can't be gathered; store it in another type.")
        padded = -(-columns // PAD_COLUMNS) * PAD_COLUMNS
        views = [
            packed[: tiles * TILE_ROWS * padded * 2].view("<u2").reshape(tiles, padded, TILE_ROWS)
            for packed, tiles in ((data, -(-rows // TILE_ROWS)), (out, -(-count // TILE_ROWS)))
        ]
        return [(views[0], views[1], np.uint16(0))]
    found = []
    parts = (split_groups(data, scheme, rows, columns), split_groups(out, scheme, count, columns))
    for source, target in zip(*parts, strict=True):
        for kind, width, fill in ((0, LANE, padding), (1, 2, np.uint16(0))):
            lanes = []
            for part in (source[kind], target[kind]):
                tiles, groups, size = part.shape
                words = part.view(f"<u{width}")
                lanes.append(words.reshape(tiles, groups, size // (width * TILE_ROWS), TILE_ROWS))
            if lanes[1].size:
                found.append((lanes[0], lanes[1], fill))
    return found
