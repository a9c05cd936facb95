"""The loops that are looked at, by the functions of kernels/tools/kernel_loops.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Work = Literal["int8", "int8 x int16", "int16", "float32", "halves", "nibbles", "powers"]

# Products (conversions and powers of two: elements) of one instruction, by the beginning of its text.
PRODUCTS: dict[Work, dict[str, int]] = {
    "int8": {"sdot": 16, "smmla": 32, "smull2": 8, "smull": 8, "vpdpbusd": 64},
    # Two digits of the 16 bits in turn, or the 8 bits widened.
    "int8 x int16": {"sdot": 8, "smull2": 4, "smull": 4, "vpdpwssd": 32},
    "int16": {"smlal2": 4, "smlal": 4, "vpdpwssd": 32},
    "float32": {"fmla": 4, "vfmadd": 16},
    "halves": {"fcvtl": 4, "vcvtph2ps": 16},
    "nibbles": {"tbl": 16, "vpshufb": 64},
    "powers": {"frintn": 4, "vrndscaleps": 16},
}


@dataclass(frozen=True)
class Kernel:
    """A loop. name: as in `edge.measure.profile.cores.Rates`.

    work: what its products are. whole: a turn is one of the outermost loop (a group of columns, with what is
    done once for it); else of the innermost. products: for one multiply-add of the model.
    """

    name: str
    function: str
    work: Work
    whole: bool = False
    products: int = 1


KERNELS = (
    Kernel("one_int4_g32", "loop_one_int4_g32", "int8", whole=True),
    Kernel("one_int4_g128", "loop_one_int4_g128", "int8", whole=True),
    Kernel("one_ternary", "loop_one_ternary", "int8", whole=True),
    Kernel("one_int8", "loop_one_int8", "int8", whole=True),
    Kernel("many_g32", "loop_many_g32", "int8", whole=True),
    Kernel("many_g128", "loop_many_g128", "int8", whole=True),
    Kernel("many_int8", "loop_many_int8", "int8", whole=True),
    Kernel("scores_float16", "loop_scores_float16", "float32"),
    Kernel("scores_float32", "loop_scores_float32", "float32"),
    Kernel("scores_int8", "loop_scores_int8", "int8 x int16"),
    Kernel("scores_int16", "loop_scores_int16", "int16"),
    Kernel("values_float16", "loop_values_float16", "float32"),
    Kernel("values_float32", "loop_values_float32", "float32"),
    Kernel("values_int8", "loop_values_int8", "int8 x int16"),
    Kernel("values_int16", "loop_values_int16", "int16"),
    Kernel("halves", "loop_halves", "halves"),
    Kernel("nibbles", "loop_nibbles", "nibbles"),
    Kernel("powers", "loop_powers", "powers"),
)
