"""Matrices on the device: sizes, and how products are cut. `kernels/cuda/tiles.py` has the layout."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge.errors import BundleError
from edge.executors.cuda.device import Address
from edge.quant.layout import MatrixLayout

BAND = 64
"""Rows that a matrix is padded to a multiple of."""
CHUNK = 256
"""Columns that a matrix is padded to a multiple of."""
_TILE_COLUMNS = {16: 64, 8: 128, 4: 128, 2: 256}
_BITS = {"f16": 16, "int8": 8, "int4": 4, "ternary": 2}
_PROGRAMS, _MOST_SLICES, _LEAST_CHUNKS = 256, 8, 2


@dataclass(frozen=True)
class Matrix:
    """One matrix, or several with the same columns and layout whose rows stand one after another.

    address: of its words, which the scales follow; 0 if it has no memory yet. kind: `f16`, `int8`, `int4` or
    `ternary`. group: columns that share a scale, 32, 64 or 128; 0 for one per row. minimum: whether each
    group has one.
    """

    kind: str
    group: int
    minimum: bool
    rows: int
    columns: int
    address: Address = 0

    def __post_init__(self) -> None:
        if self.columns % 16:
            raise BundleError(
                f"A matrix of {self.columns} columns can't be used on CUDA, which takes multiples of 16; "
                "choose the native executor."
            )

    @classmethod
    def of(cls, layout: MatrixLayout, rows: int, columns: int) -> Matrix:
        """What a matrix in a layout of bundles becomes: scales of larger or ragged groups are repeated."""
        operator = layout.layout.operator
        assert operator is not None
        group = layout.group
        if layout.minimum:
            group = 32 if group % 128 else 128
        elif group:
            group = next(size for size in (128, 64, 32) if group % size == 0)
        return cls(operator.removeprefix("linear."), group, layout.minimum, rows, columns)

    def at(self, address: Address) -> Matrix:
        """The same one with `size` bytes of memory."""
        return replace(self, address=address)

    @property
    def variant(self) -> str:
        """What tells the entries of its kernels apart, for example `int4.g32.min`."""
        if self.kind == "f16":
            return "f16"
        return f"{self.kind}.{f'g{self.group}' if self.group else 'row'}{'.min' if self.minimum else ''}"

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return _BITS[self.kind]

    @property
    def tile_columns(self) -> int:
        """Columns of a tile."""
        return _TILE_COLUMNS[self.bits]

    @property
    def bands(self) -> int:
        """Bands of 64 rows."""
        return -(-self.rows // BAND)

    @property
    def chunks(self) -> int:
        """Chunks of 256 columns."""
        return -(-self.columns // CHUNK)

    @property
    def padded_columns(self) -> int:
        """Columns with padding."""
        return self.chunks * CHUNK

    @property
    def tiles(self) -> int:
        """Tiles of a band."""
        return self.padded_columns // self.tile_columns

    @property
    def units(self) -> int:
        """Units of 1024 words of a band."""
        return self.padded_columns * self.bits // 512

    @property
    def groups(self) -> int:
        """Scales of a row, those of padding counted; 0 for f16."""
        if self.kind == "f16":
            return 0
        return self.padded_columns // self.group if self.group else 1

    @property
    def word_bytes(self) -> int:
        """Bytes of its words."""
        return self.bands * BAND * self.padded_columns * self.bits // 8

    @property
    def size(self) -> int:
        """Bytes of words and scales."""
        return self.word_bytes + self.bands * BAND * self.groups * (4 if self.minimum else 2)

    @property
    def scales(self) -> Address:
        """Of its scales."""
        return self.address + self.word_bytes

    @property
    def dense_bytes(self) -> int:
        """Bytes of its weights as plain float16, for the products of many rows (`operators/dense.py`)."""
        return -(-self.rows // (2 * BAND)) * (2 * BAND) * self.padded_columns * 2

    @property
    def slice_chunks(self) -> int:
        """Chunks of a slice; the last one may have less.

        Products are sums of slices, in order. A function of the shape alone, so that what a row gives depends
        on no other: some 256 programs for few rows, each of at least 512 columns.
        """
        slices = 1
        while slices < _MOST_SLICES and self.bands * slices < _PROGRAMS:
            slices *= 2
        return max(-(-self.chunks // slices), min(_LEAST_CHUNKS, self.chunks))

    @property
    def slices(self) -> int:
        """Slices of its columns."""
        return -(-self.chunks // self.slice_chunks)
