"""The cores, and which of LLVM's models of processors stands for each.

LLVM 19 has no model of these cores: by its own choice Cortex-A76, A78 and X1 get that of the Cortex-A57 of
2012, and X3, X4 and A720 that of Neoverse N2. Here the server core of the same design stands for each:
Neoverse N1 is the A76 (the A78 has the same vector units), V1 the X1, V2 the X3. The X4 and the A720 have
none; those of the designs before them stand for them, V2 and N2. All Apple cores share one model, the first
of 2013, with three vector units where those since the A14 and M1 have four.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelledCore:
    """A core. tiers: of the kernels that it can run, the best last; width: instructions that its front end
    takes in a cycle, with which LLVM's models are too generous (Arm's software optimization guides; for
    other makers, published measurements).
    """

    name: str
    model: str
    width: int
    tiers: tuple[str, ...]


_DOTPROD = ("neon", "neon-dotprod")
_I8MM = (*_DOTPROD, "neon-i8mm")

CORES = (
    ModelledCore("cortex-a76", "neoverse-n1", 4, _DOTPROD),
    ModelledCore("cortex-a78", "neoverse-n1", 6, _DOTPROD),
    ModelledCore("cortex-a720", "neoverse-n2", 5, _I8MM),
    ModelledCore("cortex-x1", "neoverse-v1", 8, _DOTPROD),
    ModelledCore("cortex-x3", "neoverse-v2", 8, _I8MM),
    ModelledCore("cortex-x4", "neoverse-v2", 10, _I8MM),
    ModelledCore("apple-m1", "apple-m1", 8, _DOTPROD),
    ModelledCore("apple-m2", "apple-a16", 8, _I8MM),
    ModelledCore("sapphire-rapids", "sapphirerapids", 6, ("avx512vnni",)),
    ModelledCore("zen4", "znver4", 6, ("avx512vnni",)),
)
