"""The kinds of matrices that kernels are compiled for, in the layout of `tiles.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One kind with its groups.

    name: ends the ids of its entries, as `edge.executors.cuda.matrices.Matrix.variant` says it. bits: of a
    field. zero: the field of a weight of zero. group: columns that share a scale; 0 for one per row, or none.
    minimum: whether one is added.
    """

    name: str
    bits: int
    zero: int = 0
    group: int = 0
    minimum: bool = False

    @property
    def scales(self) -> str:
        """Type of the pointer to its scales."""
        return "*i32" if self.minimum else "*fp16"

    @property
    def constants(self) -> dict[str, int]:
        """What every kernel that reads it takes."""
        return {"BITS": self.bits, "ZERO": self.zero, "GROUP": self.group}


VARIANTS = (
    Variant("f16", 16),
    *(Variant(f"int8.g{group}", 8, 128, group) for group in (32, 64, 128)),
    Variant("int8.row", 8, 128),
    *(Variant(f"int4.g{group}", 4, 8, group) for group in (32, 64, 128)),
    Variant("int4.row", 4, 8),
    *(Variant(f"int4.g{group}.min", 4, 0, group, minimum=True) for group in (32, 128)),
    *(Variant(f"ternary.g{group}", 2, 1, group) for group in (32, 64, 128)),
    Variant("ternary.row", 2, 1),
)
