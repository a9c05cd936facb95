"""Which GGUF type holds a matrix exactly, and its blocks: the inverse of `edge.checkpoints.gguf_blocks`.

Nothing is rounded here: a type that would change a weight is refused with the reason. Block layouts are those
of ggml (`ggml-common.h`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.quant.scheme import QuantizedMatrix, QuantScheme

Bytes = npt.NDArray[np.uint8]

FLOAT = "F16"


@dataclass(frozen=True)
class BlockType:
    """weights: in a block. bytes: of a block, scales included. low, high: codes counted from zero (from the
    minimum, where a block has one); zero: how a code of zero is stored.
    """

    weights: int
    bytes: int
    low: int = 0
    high: int = 0
    zero: int = 0
    minimum: bool = False

    def holds(self, scheme: QuantScheme) -> bool:
        """Whether it has a code for every one of the scheme."""
        low, high = scheme.code_range
        return scheme.minimum == self.minimum and self.low <= low and high <= self.high


BLOCKS = {
    "F16": BlockType(1, 2),
    "TQ2_0": BlockType(256, 66, -1, 1, 1),
    "TQ1_0": BlockType(256, 54, -1, 1, 1),
    "Q4_0": BlockType(32, 18, -8, 7, 8),
    "Q4_1": BlockType(32, 20, 0, 15, 0, minimum=True),
    "Q8_0": BlockType(32, 34, -128, 127),
}
"""Types that matrices are stored in. Those with codes: the better one first."""


def natural_types(scheme: QuantScheme) -> tuple[str, ...]:
    """The types that may hold a scheme exactly, the best one first."""
    if scheme.is_float:
        return (FLOAT,)
    first: dict[int, str] = {}  # a second type with blocks as wide would meet the same obstacle
    for kind, block in BLOCKS.items():
        if kind != FLOAT and block.holds(scheme):
            first.setdefault(block.weights, kind)
    return tuple(first.values())


def obstacle(
    kind: str, scheme: QuantScheme, columns: int, scales: Callable[[], npt.NDArray[np.float16]]
) -> str | None:
    """Why a matrix can't be stored exactly in type `kind`, or None.

    scales: reads the matrix's scales [rows, groups]; only called where their values decide.
    """
    width = BLOCKS[kind].weights
    if scheme.is_float or kind == FLOAT:
        return None if scheme.is_float and kind == FLOAT else f"{scheme} weights would be rounded"
    if not BLOCKS[kind].holds(scheme):
        return f"{scheme} weights would be rounded"
    if columns % width:
        return f"rows of {columns} weights are no multiple of its blocks of {width}"
    if scheme.group and scheme.group % width:
        return _shared_scales(scheme, columns, width, scales())
    return None


def _shared_scales(
    scheme: QuantScheme, columns: int, width: int, scales: npt.NDArray[np.float16]
) -> str | None:
    """Groups smaller than (or across) blocks: exact only where all groups of a block have the same scale."""
    if width % scheme.group:
        return f"groups of {scheme.group} do not fit into its blocks of {width}"
    found = scales.reshape(scales.shape[0], -1, width // scheme.group)
    differ = (found != found[..., :1]).any(axis=(1, 2))
    if differ.any():
        return (
            f"it has one scale per {width} weights, and the scales of its groups of {scheme.group} differ "
            f"(in {int(differ.sum())} of {len(differ)} rows, first in row {int(differ.argmax())})"
        )
    return None


def pack_blocks(matrix: QuantizedMatrix | npt.NDArray[np.floating[Any]], kind: str) -> Bytes:
    """Rows of blocks, uint8 [rows, bytes per row], of a matrix for which `obstacle` found none."""
    if isinstance(matrix, np.ndarray):
        return np.ascontiguousarray(matrix.astype("<f2")).view(np.uint8)
    block = BLOCKS[kind]
    rows, columns = matrix.shape
    first = np.arange(columns // block.weights) * block.weights // (matrix.scheme.group or columns)
    scales = _half_bytes(matrix.scales[:, first])
    # Bytes wrap to what is meant, signed or not.
    shift = np.uint8((block.zero - matrix.scheme.zero) % 256)
    codes = (matrix.codes.view(np.uint8) + shift).reshape(rows, -1, block.weights)
    if kind == "Q8_0":
        parts = [scales, codes]
    elif kind == "Q4_0":
        parts = [scales, _nibbles(codes)]
    elif kind == "Q4_1":
        assert matrix.minimums is not None
        parts = [scales, _half_bytes(matrix.minimums[:, first]), _nibbles(codes)]
    elif kind == "TQ2_0":
        fields = codes.reshape(rows, -1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
        parts = [np.bitwise_or.reduce(fields, axis=3).reshape(rows, -1, 64), scales]
    else:
        parts = [_base3(codes), scales]
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def _half_bytes(values: npt.NDArray[np.float16]) -> Bytes:
    return np.ascontiguousarray(values.astype("<f2")[..., None]).view(np.uint8)


def _nibbles(codes: Bytes) -> Bytes:
    """The first half of a block in the low nibbles, the second in the high ones."""
    half = codes.shape[-1] // 2
    packed: Bytes = codes[..., :half] | codes[..., half:] << np.uint8(4)
    return packed


def _base3(codes: Bytes) -> Bytes:
    """TQ1_0: five digits (four in the last bytes) as a fraction of 256, rounded up."""
    rows, blocks, _ = codes.shape

    def digits(part: Bytes, count: int, width: int) -> Bytes:
        powers = np.array([81, 27, 9, 3, 1], np.uint16)[:count, None]
        values = (part.reshape(rows, blocks, -1, count, width) * powers).sum(axis=3, dtype=np.uint16)
        packed: Bytes = ((values * 256 + 242) // 243).astype(np.uint8).reshape(rows, blocks, -1)
        return packed

    parts = (
        digits(codes[..., :160], 5, 32),
        digits(codes[..., 160:240], 5, 16),
        digits(codes[..., 240:], 4, 4),
    )
    return np.concatenate(parts, axis=-1)
