"""The canonical weight layout, version 1: the same bytes for every CPU.

A matrix of N rows (outputs) and K columns (inputs) is cut into tiles of 16 rows. A tile is a stream of
groups; a group is its codes followed by 16 float16 scales and, if the scheme has them, 16 float16 minimums,
one per row. Codes stand in 64-byte blocks made of 16 lanes of 4 bytes, lane r for row r of the tile:

* int8: a block holds 4 columns; byte b of a lane is column 4j + b, stored as code + 128;
* int4: 8 columns; the low nibble of byte b is column 8j + b, the high nibble column 8j + 4 + b;
* ternary: 16 columns; bits 2f..2f+1 of byte b are column 16j + 4f + b.

Groups are padded to a multiple of 32 columns and matrices to a multiple of 16 rows with weights of zero.
float16 matrices have no groups: for every column (padded to 32) the 16 rows stand side by side. float32 is
plain row-major and serves vectors (norms). The total is padded with zeros to 64 bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import BundleError
from edge.quant.scheme import LAYOUT_ALIGNMENT, PAD_COLUMNS, TILE_ROWS, QuantizedMatrix, QuantScheme

_LANE = 4  # bytes of one row in a 64-byte block


def pack(
    matrix: QuantizedMatrix | npt.NDArray[np.floating[Any]], scheme: QuantScheme
) -> npt.NDArray[np.uint8]:
    """Bytes of `matrix` in the canonical layout of `scheme`, as a 1-D uint8 array."""
    if scheme.kind == "f32":
        out = np.ascontiguousarray(matrix, dtype="<f4").view(np.uint8).reshape(-1)
    elif scheme.kind == "f16":
        assert isinstance(matrix, np.ndarray)
        padded = _pad(np.asarray(matrix).astype("<f2"), 0)
        tiles = padded.reshape(-1, TILE_ROWS, padded.shape[1]).transpose(0, 2, 1)
        out = np.ascontiguousarray(tiles).view(np.uint8).reshape(-1)
    else:
        assert isinstance(matrix, QuantizedMatrix)
        out = _pack_groups(matrix)
    return np.pad(out, (0, -out.size % LAYOUT_ALIGNMENT))


def unpack(
    data: npt.NDArray[np.uint8], scheme: QuantScheme, rows: int, columns: int
) -> QuantizedMatrix | npt.NDArray[np.floating[Any]]:
    """Inverse of `pack`; raises BundleError if `data` has not the size that the shape asks for."""
    if data.size != scheme.packed_bytes(rows, columns):
        raise BundleError(
            f"A {rows}x{columns} matrix in layout {scheme.layout} takes "
            f"{scheme.packed_bytes(rows, columns)} bytes, found {data.size}."
        )
    padded_columns = -(-columns // PAD_COLUMNS) * PAD_COLUMNS
    tiles = -(-rows // TILE_ROWS)
    if scheme.kind == "f32":
        return data[: rows * columns * 4].view("<f4").reshape(rows, columns)
    if scheme.kind == "f16":
        halves = data[: tiles * TILE_ROWS * padded_columns * 2].view("<f2")
        plain = halves.reshape(tiles, padded_columns, TILE_ROWS).transpose(0, 2, 1)
        return np.ascontiguousarray(plain.reshape(-1, padded_columns)[:rows, :columns])
    return _unpack_groups(data, scheme, rows, columns)


def dequantize(
    data: npt.NDArray[np.uint8], scheme: QuantScheme, rows: int, columns: int
) -> npt.NDArray[np.float32]:
    """The packed matrix as float32 [rows, columns]."""
    plain = unpack(data, scheme, rows, columns)
    return plain.dequantize() if isinstance(plain, QuantizedMatrix) else plain.astype(np.float32)


def packed_scales(
    data: npt.NDArray[np.uint8], scheme: QuantScheme, rows: int, columns: int
) -> npt.NDArray[np.float16]:
    """Every float16 scale and minimum of a packed matrix, flat; of a float16 matrix, all its weights.

    Cheap compared with `unpack`: it says whether a packed matrix is finite.
    """
    if scheme.is_float:
        return data.view("<f4" if scheme.kind == "f32" else "<f2")
    tails = [tail.reshape(-1) for _, tail in split_groups(data, scheme, rows, columns)]
    return np.concatenate(tails).view("<f2")


def split_groups(
    data: npt.NDArray[np.uint8], scheme: QuantScheme, rows: int, columns: int
) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Views of a packed quantized matrix: (code bytes, scale and minimum bytes) [tiles, groups, bytes].

    The first pair has all groups of a tile but the last one, which may be shorter and is the second pair's.
    """
    bounds = _group_bounds(scheme, columns)
    tail = TILE_ROWS * 2 * (2 if scheme.minimum else 1)
    first, last = ((stop - start) * TILE_ROWS * scheme.bits // 8 for start, stop in (bounds[0], bounds[-1]))
    tiles, whole = -(-rows // TILE_ROWS), (len(bounds) - 1) * (first + tail)
    stream = data[: tiles * (whole + last + tail)].reshape(tiles, -1)
    regular = stream[:, :whole].reshape(tiles, len(bounds) - 1, first + tail)
    ragged = stream[:, None, whole:]
    return [(regular[..., :first], regular[..., first:]), (ragged[..., :last], ragged[..., last:])]


def _zero_code(scheme: QuantScheme) -> int:
    """The stored (unsigned) code of a padding weight; with a minimum the activation's zero does the work."""
    return {"int8": 128, "int4": 0 if scheme.minimum else 8, "ternary": 1}[scheme.kind]


def _pad(matrix: npt.NDArray[Any], fill: int) -> npt.NDArray[Any]:
    rows, columns = matrix.shape
    return np.pad(matrix, ((0, -rows % TILE_ROWS), (0, -columns % PAD_COLUMNS)), constant_values=fill)


def _group_bounds(scheme: QuantScheme, columns: int) -> list[tuple[int, int]]:
    padded = -(-columns // PAD_COLUMNS) * PAD_COLUMNS
    step = scheme.group or padded
    return [(start, min(start + step, padded)) for start in range(0, padded, step)]


def _pack_codes(codes: npt.NDArray[np.uint8], scheme: QuantScheme) -> npt.NDArray[np.uint8]:
    """[rows, columns] unsigned codes -> [tiles, columns / per_block, 64] bytes."""
    fields = 8 // scheme.bits
    tiles, columns = codes.shape[0] // TILE_ROWS, codes.shape[1]
    blocks = codes.reshape(tiles, TILE_ROWS, columns // (_LANE * fields), fields, _LANE)
    packed = np.zeros((tiles, TILE_ROWS, blocks.shape[2], _LANE), np.uint8)
    for field in range(fields):
        packed |= blocks[:, :, :, field] << np.uint8(field * scheme.bits)
    return packed.transpose(0, 2, 1, 3).reshape(tiles, blocks.shape[2], TILE_ROWS * _LANE)


def _pack_groups(matrix: QuantizedMatrix) -> npt.NDArray[np.uint8]:
    scheme, (_, columns) = matrix.scheme, matrix.shape
    codes = matrix.codes.astype(np.int16) + 128 if scheme.kind == "int8" else matrix.codes
    blocks = _pack_codes(_pad(codes.astype(np.uint8), _zero_code(scheme)), scheme)
    tiles = blocks.shape[0]
    per_block = _LANE * 8 // scheme.bits
    tails = [matrix.scales] if matrix.minimums is None else [matrix.scales, matrix.minimums]
    halves = [
        np.pad(t.astype("<f2"), ((0, -t.shape[0] % TILE_ROWS), (0, 0))).reshape(tiles, TILE_ROWS, -1)
        for t in tails
    ]
    parts = []
    for index, (start, stop) in enumerate(_group_bounds(scheme, columns)):
        parts.append(blocks[:, start // per_block : stop // per_block].reshape(tiles, -1))
        parts += [np.ascontiguousarray(half[:, :, index]).view(np.uint8) for half in halves]
    return np.concatenate(parts, axis=1).reshape(-1)


def _unpack_groups(
    data: npt.NDArray[np.uint8], scheme: QuantScheme, rows: int, columns: int
) -> QuantizedMatrix:
    tiles = -(-rows // TILE_ROWS)
    fields, per_block = 8 // scheme.bits, _LANE * 8 // scheme.bits
    bounds = _group_bounds(scheme, columns)
    tail_bytes = TILE_ROWS * 2
    tails = 2 if scheme.minimum else 1
    tile_bytes = sum((stop - start) // per_block * 64 + tail_bytes * tails for start, stop in bounds)
    stream = data[: tiles * tile_bytes].reshape(tiles, tile_bytes)
    codes = np.empty((tiles, TILE_ROWS, bounds[-1][1]), np.uint8)
    halves = np.empty((tails, tiles, TILE_ROWS, len(bounds)), "<f2")
    at = 0
    for index, (start, stop) in enumerate(bounds):
        count = (stop - start) // per_block
        blocks = stream[:, at : at + count * 64].reshape(tiles, count, TILE_ROWS, _LANE).transpose(0, 2, 1, 3)
        target = codes[:, :, start:stop].reshape(tiles, TILE_ROWS, count, fields, _LANE)
        for field in range(fields):
            target[:, :, :, field] = (blocks >> np.uint8(field * scheme.bits)) & np.uint8(
                (1 << scheme.bits) - 1
            )
        codes[:, :, start:stop] = target.reshape(tiles, TILE_ROWS, stop - start)
        at += count * 64
        for tail in range(tails):
            half = np.ascontiguousarray(stream[:, at : at + tail_bytes]).view("<f2")
            halves[tail, :, :, index] = half
            at += tail_bytes
    plain: npt.NDArray[Any] = codes.reshape(-1, codes.shape[2])[:rows, :columns]
    if scheme.kind == "int8":
        plain = (plain.astype(np.int16) - 128).astype(np.int8)
    scales, *minimums = halves.reshape(tails, tiles * TILE_ROWS, -1)[:, :rows]
    return QuantizedMatrix(scheme, plain, scales, minimums[0] if minimums else None)
