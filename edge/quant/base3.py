"""Ternary matrices in base 3, for files: five weights in a byte, 1.6 bits a weight instead of 2.

A matrix in this layout is
* the codes (0, 1, 2), five of them as the byte c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4, the last byte filled up with
  zeros;
* the float16 scales;
* zeros up to a multiple of 64 bytes.

Both stand in the order of the canonical layout (`edge.quant.packing`: tile by tile, byte after byte, from the
lowest bits up, padding included), but the last groups of all tiles come after all the others.

Nothing computes on it: `edge.checkpoints.compact` turns it back into the canonical layout, byte for byte,
once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.errors import BundleError
from edge.quant.layout import LAYOUT_ALIGNMENT, PAD_COLUMNS, TILE_ROWS
from edge.quant.packing import packed_scales, split_groups
from edge.quant.scheme import QuantScheme

_DIGITS = 5  # 3**5 = 243 fits a byte
_FIELDS = 4  # codes in a byte of the canonical layout
_POWERS = np.array([3**i for i in range(_DIGITS)], np.uint8)
_TABLE = (np.arange(3**_DIGITS)[:, None] // _POWERS % 3).astype(np.uint8)


def base3_bytes(scheme: QuantScheme, rows: int, columns: int) -> int:
    """Size in bytes of a `rows` x `columns` ternary matrix in base 3."""
    codes, scales = _counts(scheme, rows, columns)
    size = -(-codes // _DIGITS) + 2 * scales
    return -(-size // LAYOUT_ALIGNMENT) * LAYOUT_ALIGNMENT


def pack_base3(
    data: npt.NDArray[np.uint8], scheme: QuantScheme, rows: int, columns: int
) -> npt.NDArray[np.uint8]:
    """A packed ternary matrix in base 3; BundleError if it holds a code that is none of the three."""
    blocks = np.concatenate([codes.reshape(-1) for codes, _ in split_groups(data, scheme, rows, columns)])
    digits = np.empty((blocks.size, _FIELDS), np.uint8)
    for field in range(_FIELDS):
        digits[:, field] = blocks >> (2 * field) & 3
    if digits.max() > 2:
        raise BundleError("A ternary matrix holds a code other than 0, 1 and 2: it is damaged.")
    flat = np.pad(digits.reshape(-1), (0, -digits.size % _DIGITS)).reshape(-1, _DIGITS)
    packed = (flat * _POWERS).sum(axis=1, dtype=np.uint8)
    out = np.concatenate([packed, packed_scales(data, scheme, rows, columns).view(np.uint8)])
    return np.pad(out, (0, -out.size % LAYOUT_ALIGNMENT))


def unpack_base3(
    data: npt.NDArray[np.uint8], scheme: QuantScheme, rows: int, columns: int
) -> npt.NDArray[np.uint8]:
    """Inverse of `pack_base3`: the canonical bytes. BundleError for a wrong size and for bytes above 242."""
    if data.size != base3_bytes(scheme, rows, columns):
        raise BundleError(
            f"A {rows}x{columns} matrix in layout {scheme.compact_layout} takes "
            f"{base3_bytes(scheme, rows, columns)} bytes, found {data.size}."
        )
    codes, scales = _counts(scheme, rows, columns)
    packed = data[: -(-codes // _DIGITS)]
    if packed.max() >= len(_TABLE):
        raise BundleError(
            f"A ternary matrix in base 3 holds a byte above {len(_TABLE) - 1}: it is damaged; download or "
            "copy the model again."
        )
    digits = _TABLE[packed].reshape(-1)[:codes].reshape(-1, _FIELDS)
    blocks = digits[:, 0].copy()
    for field in range(1, _FIELDS):
        blocks |= digits[:, field] << (2 * field)
    halves = data[packed.size : packed.size + 2 * scales]
    out = np.zeros(scheme.packed_bytes(rows, columns), np.uint8)
    for code_bytes, scale_bytes in split_groups(out, scheme, rows, columns):
        code_bytes[:] = blocks[: code_bytes.size].reshape(code_bytes.shape)
        scale_bytes[:] = halves[: scale_bytes.size].reshape(scale_bytes.shape)
        blocks, halves = blocks[code_bytes.size :], halves[scale_bytes.size :]
    return out


def _counts(scheme: QuantScheme, rows: int, columns: int) -> tuple[int, int]:
    """Codes and scales with their padding; only layouts of three codes have base 3."""
    assert scheme.compact_layout is not None
    padded_rows = -(-rows // TILE_ROWS) * TILE_ROWS
    return padded_rows * (-(-columns // PAD_COLUMNS) * PAD_COLUMNS), padded_rows * scheme.groups(columns)
