"""Matrices on the device: sizes, and how products are cut. `kernels/cuda/tiles.py` has the layout."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge.errors import BundleError
from edge.executors.cuda.device import Address
from edge.quant.layout import F16, I4, I8, T2, MatrixLayout

BAND = 64
"""Rows that a matrix is padded to a multiple of."""
CHUNK = 256
"""Columns that a matrix is padded to a multiple of."""
VARIANTS = (
    MatrixLayout(F16),
    *(MatrixLayout(I8, group) for group in (32, 64, 128, 0)),
    *(MatrixLayout(I4, group) for group in (32, 64, 128, 0)),
    *(MatrixLayout(I4, group, minimum=True) for group in (32, 128)),
    *(MatrixLayout(T2, group) for group in (32, 64, 128, 0)),
)
"""Fields, groups and minimums that kernels are compiled for."""
MOST_SLICES = 8
_PROGRAMS, _LEAST_CHUNKS = 256, 2
_TILE_COLUMNS = {F16: 64, I8: 128, I4: 128, T2: 256}


def variant_of(layout: MatrixLayout) -> MatrixLayout:
    """What a matrix in a layout of bundles becomes: scales of larger or ragged groups are repeated."""
    group = layout.group
    if layout.minimum:
        group = 32 if group % 128 else 128
    elif group:
        group = next(size for size in (128, 64, 32) if group % size == 0)
    return MatrixLayout(layout.layout, group, layout.minimum)


def kind_of(layout: MatrixLayout) -> str:
    """`f16`, `int8`, `int4` or `ternary`."""
    assert layout.layout.operator is not None
    return layout.layout.operator.removeprefix("linear.")


def name_of(layout: MatrixLayout) -> str:
    """What tells the entries of a kernel apart, for example `int4.g32.min`."""
    if layout.is_float:
        return kind_of(layout)
    groups = f"g{layout.group}" if layout.group else "row"
    return f"{kind_of(layout)}.{groups}{'.min' if layout.minimum else ''}"


@dataclass(frozen=True)
class Matrix:
    """One matrix, or several with the same columns and layout whose rows stand one after another.

    layout: one of VARIANTS. address: of its words, which the scales follow; 0 if it has no memory yet.
    """

    layout: MatrixLayout
    rows: int
    columns: int
    address: Address = 0

    def __post_init__(self) -> None:
        assert self.layout in VARIANTS
        if self.columns % 16:
            raise BundleError(
                f"A matrix of {self.columns} columns can't be used on CUDA, which takes multiples of 16; "
                "choose the native executor."
            )

    def at(self, address: Address) -> Matrix:
        """The same one with `size` bytes of memory."""
        return replace(self, address=address)

    @property
    def variant(self) -> str:
        """What tells the entries of its kernels apart."""
        return name_of(self.layout)

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return self.layout.layout.bits

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
        return self.padded_columns // _TILE_COLUMNS[self.layout.layout]

    @property
    def units(self) -> int:
        """Units of 1024 words of a band."""
        return self.padded_columns * self.bits // 512

    @property
    def groups(self) -> int:
        """Scales of a row, those of padding counted; 0 for f16."""
        return self.layout.groups(self.padded_columns)

    @property
    def word_bytes(self) -> int:
        """Bytes of its words."""
        return self.bands * BAND * self.padded_columns * self.bits // 8

    @property
    def size(self) -> int:
        """Bytes of words and scales."""
        return self.word_bytes + self.bands * BAND * self.groups * 2 * self.layout.tails

    @property
    def scales(self) -> Address:
        """Of its scales."""
        return self.address + self.word_bytes

    @property
    def dense_bytes(self) -> int:
        """Bytes of its weights as plain float16, for the products of many rows (`operators/dense.py`)."""
        return -(-self.bands // 2) * 2 * BAND * self.padded_columns * 2

    @property
    def slice_chunks(self) -> int:
        """Chunks of a slice; the last one may have less.

        Products are sums of slices, in order. A function of the shape alone, so that what a row gives depends
        on no other: some 256 programs for few rows, each of at least 512 columns.
        """
        slices = 1
        while slices < MOST_SLICES and self.bands * slices < _PROGRAMS:
            slices *= 2
        return max(-(-self.chunks // slices), min(_LEAST_CHUNKS, self.chunks))

    @property
    def slices(self) -> int:
        """Slices of its columns."""
        return -(-self.chunks // self.slice_chunks)
