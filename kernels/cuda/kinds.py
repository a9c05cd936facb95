"""What kernels are told of the kinds of matrices (`edge.executors.cuda.matrices.VARIANTS`)."""

from __future__ import annotations

from edge.quant.layout import MatrixLayout


def constants_of(layout: MatrixLayout) -> dict[str, int]:
    """BITS: of a field. ZERO: the field of a weight of zero. GROUP: columns that share a scale; 0 for one per
    row, or none.
    """
    return {"BITS": layout.layout.bits, "ZERO": layout.zero, "GROUP": layout.group}


def scales_of(layout: MatrixLayout) -> str:
    """Type of the pointer to its scales, see `tiles.py`."""
    return "*i32" if layout.minimum else "*fp16"
