"""The canonical weight layout, version 1: the same bytes for every CPU.

A matrix of N rows (outputs) and K columns (inputs) is cut into tiles of 16 rows. A tile is a stream of
groups; a group is its codes followed by 16 float16 scales and, if the scheme has them, 16 float16 minimums,
one per row. Codes stand in 64-byte blocks made of 16 lanes of 4 bytes, lane r for row r of the tile
(a layout's name says which, `edge.quant.layout`; a scheme's code is the field that is as far from zero):

* i8: a block holds 4 columns; byte b of a lane is column 4j + b, 128 is zero;
* i4: 8 columns; the low nibble of byte b is column 8j + b, the high nibble column 8j + 4 + b;
* t2: 16 columns; bits 2f..2f+1 of byte b are column 16j + 4f + b.

Groups are padded to a multiple of 32 columns and matrices to a multiple of 16 rows with weights of zero.
float16 matrices have no groups: for every column (padded to 32) the 16 rows stand side by side. float32 is
plain row-major and serves vectors (norms). The total is padded with zeros to 64 bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import BundleError
from edge.quant.layout import LANE, LAYOUT_ALIGNMENT, PAD_COLUMNS, TILE_ROWS, MatrixLayout
from edge.quant.scheme import QuantizedMatrix, QuantScheme, weights_of


def pack(
    matrix: QuantizedMatrix | npt.NDArray[np.floating[Any]], scheme: QuantScheme
) -> npt.NDArray[np.uint8]:
    """Bytes of `matrix` in the layout of `scheme`, as a 1-D uint8 array."""
    layout = scheme.packing.layout
    if layout.floats is None:
        assert isinstance(matrix, QuantizedMatrix)
        out = _pack_groups(matrix)
    else:
        assert isinstance(matrix, np.ndarray)
        plain = np.asarray(matrix).astype(layout.floats, copy=False)
        if layout.tiled:
            padded = _pad(plain, 0)
            plain = padded.reshape(-1, TILE_ROWS, padded.shape[1]).transpose(0, 2, 1)
        out = np.ascontiguousarray(plain).view(np.uint8).reshape(-1)
    return np.pad(out, (0, -out.size % LAYOUT_ALIGNMENT))


def unpack(
    data: npt.NDArray[np.uint8], scheme: QuantScheme, rows: int, columns: int
) -> QuantizedMatrix | npt.NDArray[np.floating[Any]]:
    """Inverse of `pack`; raises BundleError if `data` has not the size that the shape asks for."""
    packing = scheme.packing
    _check_size(data, packing, rows, columns)
    if packing.is_float:
        return _unpack_floats(data, packing, rows, columns)
    fields, scales, minimums = _unpack_groups(data, packing, rows, columns)
    codes = _shifted(fields, scheme.zero - packing.zero, scheme.dtype)
    return QuantizedMatrix(scheme, codes, scales, minimums)


def dequantize(
    data: npt.NDArray[np.uint8], scheme: QuantScheme | MatrixLayout, rows: int, columns: int
) -> npt.NDArray[np.float32]:
    """The packed matrix as float32 [rows, columns]; its layout says all that is needed."""
    packing = scheme if isinstance(scheme, MatrixLayout) else scheme.packing
    _check_size(data, packing, rows, columns)
    if packing.is_float:
        return _unpack_floats(data, packing, rows, columns).astype(np.float32)
    fields, scales, minimums = _unpack_groups(data, packing, rows, columns)
    return weights_of(fields, packing.zero, packing.group, scales, minimums)


def packed_scales(
    data: npt.NDArray[np.uint8], scheme: QuantScheme, rows: int, columns: int
) -> npt.NDArray[np.floating[Any]]:
    """Every float16 scale and minimum of a packed matrix, flat; of a float matrix, all its weights.

    Cheap compared with `unpack`: it says whether a packed matrix is finite.
    """
    floats = scheme.packing.layout.floats
    if floats is not None:
        return data.view(floats)
    tails = [tail.reshape(-1) for _, tail in split_groups(data, scheme, rows, columns)]
    return np.concatenate(tails).view("<f2")


def split_groups(
    data: npt.NDArray[np.uint8], scheme: QuantScheme, rows: int, columns: int
) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Views of a packed quantized matrix: (code bytes, scale and minimum bytes) [tiles, groups, bytes].

    The first pair has all groups of a tile but the last one, which may be shorter and is the second pair's.
    """
    packing = scheme.packing
    bounds = _group_bounds(packing.group, columns)
    tail = TILE_ROWS * 2 * packing.tails
    bits = packing.layout.bits
    first, last = ((stop - start) * TILE_ROWS * bits // 8 for start, stop in (bounds[0], bounds[-1]))
    tiles, whole = -(-rows // TILE_ROWS), (len(bounds) - 1) * (first + tail)
    stream = data[: tiles * (whole + last + tail)].reshape(tiles, -1)
    regular = stream[:, :whole].reshape(tiles, len(bounds) - 1, first + tail)
    ragged = stream[:, None, whole:]
    return [(regular[..., :first], regular[..., first:]), (ragged[..., :last], ragged[..., last:])]


def _check_size(data: npt.NDArray[np.uint8], packing: MatrixLayout, rows: int, columns: int) -> None:
    wanted = packing.packed_bytes(rows, columns)
    if data.size != wanted:
        raise BundleError(
            f"A {rows}x{columns} matrix in layout {packing.id} takes {wanted} bytes, found {data.size}."
        )


def _shifted(codes: npt.NDArray[Any], by: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Codes counted from another zero; `codes` itself if it is the same one."""
    if by == 0 and codes.dtype == dtype:
        return codes
    return (codes.astype(np.int16) + by).astype(dtype)


def _pad(matrix: npt.NDArray[Any], fill: int) -> npt.NDArray[Any]:
    rows, columns = matrix.shape
    return np.pad(matrix, ((0, -rows % TILE_ROWS), (0, -columns % PAD_COLUMNS)), constant_values=fill)


def _group_bounds(group: int, columns: int) -> list[tuple[int, int]]:
    padded = -(-columns // PAD_COLUMNS) * PAD_COLUMNS
    step = group or padded
    return [(start, min(start + step, padded)) for start in range(0, padded, step)]


def _pack_fields(codes: npt.NDArray[np.uint8], packing: MatrixLayout) -> npt.NDArray[np.uint8]:
    """[rows, columns] fields -> [tiles, columns / block, 64] bytes."""
    layout = packing.layout
    tiles, columns = codes.shape[0] // TILE_ROWS, codes.shape[1]
    blocks = codes.reshape(tiles, TILE_ROWS, columns // layout.block, layout.fields, LANE)
    packed = np.zeros((tiles, TILE_ROWS, blocks.shape[2], LANE), np.uint8)
    for field in range(layout.fields):
        packed |= blocks[:, :, :, field] << np.uint8(field * layout.bits)
    return packed.transpose(0, 2, 1, 3).reshape(tiles, blocks.shape[2], TILE_ROWS * LANE)


def _pack_groups(matrix: QuantizedMatrix) -> npt.NDArray[np.uint8]:
    packing, (_, columns) = matrix.scheme.packing, matrix.shape
    fields = _shifted(matrix.codes, packing.zero - matrix.scheme.zero, np.uint8)
    blocks = _pack_fields(_pad(fields, packing.zero), packing)
    tiles = blocks.shape[0]
    per_block = packing.layout.block
    tails = [matrix.scales] if matrix.minimums is None else [matrix.scales, matrix.minimums]
    halves = [
        np.pad(t.astype("<f2"), ((0, -t.shape[0] % TILE_ROWS), (0, 0))).reshape(tiles, TILE_ROWS, -1)
        for t in tails
    ]
    parts = []
    for index, (start, stop) in enumerate(_group_bounds(packing.group, columns)):
        parts.append(blocks[:, start // per_block : stop // per_block].reshape(tiles, -1))
        parts += [np.ascontiguousarray(half[:, :, index]).view(np.uint8) for half in halves]
    return np.concatenate(parts, axis=1).reshape(-1)


def _unpack_floats(
    data: npt.NDArray[np.uint8], packing: MatrixLayout, rows: int, columns: int
) -> npt.NDArray[np.floating[Any]]:
    layout = packing.layout
    assert layout.floats is not None
    width = layout.bits // 8
    if not layout.tiled:
        return data[: rows * columns * width].view(layout.floats).reshape(rows, columns)
    padded_columns, tiles = -(-columns // PAD_COLUMNS) * PAD_COLUMNS, -(-rows // TILE_ROWS)
    floats = data[: tiles * TILE_ROWS * padded_columns * width].view(layout.floats)
    plain = floats.reshape(tiles, padded_columns, TILE_ROWS).transpose(0, 2, 1)
    return np.ascontiguousarray(plain.reshape(-1, padded_columns)[:rows, :columns])


def _unpack_groups(
    data: npt.NDArray[np.uint8], packing: MatrixLayout, rows: int, columns: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], npt.NDArray[np.float16] | None]:
    """Fields [rows, columns], scales and minimums [rows, groups]."""
    layout = packing.layout
    tiles = -(-rows // TILE_ROWS)
    bounds = _group_bounds(packing.group, columns)
    tail_bytes, tails = TILE_ROWS * 2, packing.tails
    tile_bytes = sum((stop - start) // layout.block * 64 + tail_bytes * tails for start, stop in bounds)
    stream = data[: tiles * tile_bytes].reshape(tiles, tile_bytes)
    codes = np.empty((tiles, TILE_ROWS, bounds[-1][1]), np.uint8)
    halves = np.empty((tails, tiles, TILE_ROWS, len(bounds)), "<f2")
    mask = np.uint8((1 << layout.bits) - 1)
    at = 0
    for index, (start, stop) in enumerate(bounds):
        count = (stop - start) // layout.block
        blocks = stream[:, at : at + count * 64].reshape(tiles, count, TILE_ROWS, LANE).transpose(0, 2, 1, 3)
        target = codes[:, :, start:stop].reshape(tiles, TILE_ROWS, count, layout.fields, LANE)
        for field in range(layout.fields):
            target[:, :, :, field] = (blocks >> np.uint8(field * layout.bits)) & mask
        codes[:, :, start:stop] = target.reshape(tiles, TILE_ROWS, stop - start)
        at += count * 64
        for tail in range(tails):
            half = np.ascontiguousarray(stream[:, at : at + tail_bytes]).view("<f2")
            halves[tail, :, :, index] = half
            at += tail_bytes
    plain = codes.reshape(-1, codes.shape[2])[:rows, :columns]
    scales, *minimums = halves.reshape(tails, tiles * TILE_ROWS, -1)[:, :rows]
    return plain, scales, minimums[0] if minimums else None
