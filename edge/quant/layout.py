"""Byte layouts of packed matrices: what the kernels of an executor compute on.

A layout knows fields of bits, not what a scheme means by its codes; `edge.quant.packing` has the bytes.
Those here are libedge's. One of another executor has `kernel` None, and the native executor refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass

TILE_ROWS = 16
"""Rows that are interleaved in a tile."""
PAD_COLUMNS = 32
"""Every group is padded with zeros to a multiple of this many columns."""
LAYOUT_ALIGNMENT = 64
"""The packed size of a matrix is rounded up to this many bytes."""
LANE = 4
"""Bytes of one row in a block of a tile."""


@dataclass(frozen=True)
class Layout:
    """One kind of byte layout.

    name: its identifier, without group and version. bits: of a field. operator: the linear operator in
    manifests that computes on it, None if matrices are never stored so. kernel: libedge's number of it
    (`edge_kind`). first, last: smallest and largest field that its kernels take; zero: the field of a weight
    of zero, where there is no minimum. minimum: whether kernels can add one per group. floats: the numpy type
    of a layout without codes. tiled: False for plain rows. compact: name of its smaller form for files.
    """

    name: str
    bits: int
    operator: str | None
    kernel: int | None
    first: int = 0
    last: int = 0
    zero: int = 0
    minimum: bool = False
    floats: str | None = None
    tiled: bool = True
    compact: str | None = None
    version: int = 1

    @property
    def fields(self) -> int:
        """Fields in a byte."""
        return 8 // self.bits

    @property
    def block(self) -> int:
        """Columns of a row that stand together in a block of a tile."""
        return LANE * self.fields


F32 = Layout("f32.row", 32, None, 0, floats="<f4", tiled=False)
F16 = Layout("f16.n16", 16, "linear.f16", 1, floats="<f2")
I8 = Layout("i8.n16k4", 8, "linear.int8", 2, first=1, last=255, zero=128)
I4 = Layout("i4.n16k8", 4, "linear.int4", 3, last=15, zero=8, minimum=True)
T2 = Layout("t2.n16k16", 2, "linear.ternary", 4, last=2, zero=1, compact="t3.n16k16")
NATIVE = (F32, F16, I8, I4, T2)
"""Layouts of libedge's kernels, in the order of their numbers."""


@dataclass(frozen=True)
class MatrixLayout:
    """A layout with the groups of one matrix. group: columns that share a scale, 0 for one per row."""

    layout: Layout
    group: int = 0
    minimum: bool = False

    @property
    def id(self) -> str:
        """Identifier of the bytes, for example `i4.n16k8.g32.min.v1`."""
        return self._id(self.layout.name)

    @property
    def compact_id(self) -> str | None:
        """Identifier of the smaller bytes (`edge.quant.base3`), None if there are none."""
        return None if self.layout.compact is None else self._id(self.layout.compact)

    @property
    def operators(self) -> tuple[str, ...]:
        """The operator of a manifest that a network needs for such a matrix, if any."""
        if self.layout.operator is None:
            return ()
        return (f"{self.layout.operator}.minimum" if self.minimum else self.layout.operator,)

    @property
    def is_float(self) -> bool:
        """True for layouts without codes."""
        return self.layout.floats is not None

    @property
    def zero(self) -> int:
        """The field of a padding weight; with a minimum the activation's zero does the work."""
        return 0 if self.minimum else self.layout.zero

    @property
    def tails(self) -> int:
        """float16 numbers of a row and group: its scale, and its minimum if there is one."""
        return 2 if self.minimum else 1

    def groups(self, columns: int) -> int:
        """Number of groups in a row of `columns` weights."""
        if self.is_float:
            return 0
        return -(-columns // self.group) if self.group else 1

    def packed_bytes(self, rows: int, columns: int) -> int:
        """Size in bytes of a `rows` x `columns` matrix."""
        if not self.layout.tiled:
            size = rows * columns * self.layout.bits // 8
        else:
            padded_rows = -(-rows // TILE_ROWS) * TILE_ROWS
            padded_columns = -(-columns // PAD_COLUMNS) * PAD_COLUMNS
            size = padded_rows * padded_columns * self.layout.bits // 8
            size += padded_rows * 2 * self.groups(columns) * self.tails
        return -(-size // LAYOUT_ALIGNMENT) * LAYOUT_ALIGNMENT

    def _id(self, name: str) -> str:
        version = f"v{self.layout.version}"
        if self.is_float:
            return f"{name}.{version}"
        group = f"g{self.group}" if self.group else "row"
        return f"{name}.{group}{'.min' if self.minimum else ''}.{version}"
