"""Bundle matrices as operands of com.microsoft's MatMulNBits and GatherBlockQuantized, code by code.

A weight stays what it is: w = scale * (code - zero), with the zero in the middle that those operators assume
when they are given none. Only the order of the codes changes: rows, one after the other, in blocks of
columns, the first code in the low bits. Matrices pass through memory some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.reader import Bundle
from edge.quant.layout import TILE_ROWS
from edge.quant.packing import unpack
from edge.quant.scheme import QuantizedMatrix, QuantScheme

_LARGEST_BLOCK = 128  # what every MatMulNBits kernel takes
_PIECE = 16 << 20  # weights that are unpacked at a time
_STEP_ROWS = 2 * TILE_ROWS  # whole tiles whose packed size is a multiple of the layout's alignment
_BITS = (2, 4, 8)  # that MatMulNBits has


@dataclass(frozen=True)
class BlockLayout:
    """How a matrix in one of the bundle's schemes is laid out for MatMulNBits.

    block: columns that share a scale there, a power of two of at most 128. repeat: blocks that share one of
    the bundle's scales; 0 if all of a row do.
    """

    bits: int
    block: int
    repeat: int

    @classmethod
    def of(cls, scheme: QuantScheme) -> BlockLayout:
        """The layout for a quantized scheme."""
        low, high = scheme.code_range
        bits = next(
            bits
            for bits in _BITS
            for middle in (0 if scheme.minimum else 1 << (bits - 1),)
            if low + middle >= 0 and high + middle < 1 << bits
        )
        if scheme.group == 0:
            return cls(bits, _LARGEST_BLOCK, 0)
        block = min(scheme.group & -scheme.group, _LARGEST_BLOCK)
        return cls(bits, block, scheme.group // block)

    @property
    def middle(self) -> int:
        """The code that those operators take for zero."""
        return 1 << (self.bits - 1)

    def blocks(self, columns: int) -> int:
        """Blocks in a row."""
        return -(-columns // self.block)

    def block_bytes(self) -> int:
        """Bytes of a block's codes."""
        return self.block * self.bits // 8

    def codes(self, matrix: QuantizedMatrix) -> npt.NDArray[np.uint8]:
        """uint8 [rows, blocks, bytes of a block]; columns that fill up the last block weigh zero."""
        rows, columns = matrix.shape
        # With a minimum the middle is made up for in the offsets.
        shift = 0 if matrix.scheme.minimum else self.middle - matrix.scheme.zero
        codes = np.full((rows, self.blocks(columns) * self.block), self.middle, np.uint8)
        # Codes can be signed; their bytes wrap to what is meant.
        codes[:, :columns] = matrix.codes.view(np.uint8) + np.uint8(shift % 256)
        fields = 8 // self.bits
        split = codes.reshape(rows, self.blocks(columns), -1, fields)
        packed = split[..., 0].copy()
        for field in range(1, fields):
            packed |= split[..., field] << np.uint8(field * self.bits)
        return packed

    def spread(self, values: npt.NDArray[np.float16], columns: int) -> npt.NDArray[np.float16]:
        """Scales or minimums [rows, groups] -> [rows, blocks]."""
        repeat = self.repeat or self.blocks(columns)
        return np.repeat(values, repeat, axis=1)[:, : self.blocks(columns)]


def matrix_pieces(bundle: Bundle, name: str) -> Iterator[QuantizedMatrix | npt.NDArray[np.floating]]:
    """A matrix of the bundle, some rows at a time: quantized ones as they are, floats as float16."""
    info = bundle.tensors[name]
    data = bundle.data(name)
    step = max(_PIECE // info.columns // _STEP_ROWS, 1) * _STEP_ROWS
    for start in range(0, info.rows, step):
        rows = min(step, info.rows - start)
        first = info.scheme.packed_bytes(start, info.columns)
        size = info.scheme.packed_bytes(rows, info.columns)
        yield unpack(data[first : first + size], info.scheme, rows, info.columns)


def float_vector(bundle: Bundle, name: str) -> npt.NDArray[np.float32]:
    """A norm's weights, float32 [n]."""
    info: BundleTensor = bundle.tensors[name]
    return np.asarray(unpack(bundle.data(name), info.scheme, 1, info.columns)).reshape(-1).astype(np.float32)
