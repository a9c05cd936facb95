"""The devices that kernels are compiled for, and what each of them allows."""

from __future__ import annotations

from dataclasses import dataclass

from edge.executors.cuda.manifest import Variant

LOWERED_FOR = 87
"""The compute capability that Triton is told. All devices get the PTX of this one (Orin's): with one text,
sums have the same order everywhere, and nothing is tied to one architecture as wgmma and tcgen05 are.
Not 80, for which Triton leaves pairs of fp16 operations apart.
"""
PTX = Variant("compute_80", driver=12000)
"""What the text says that it needs, which ptxas checks. The driver's number goes with PTX_ISA."""
PTX_ISA = 80  # 8.0, which drivers of CUDA 12.0 and newer know

_BLACKWELL = "ptxas-blackwell"  # of CUDA 13, which drivers before 13.0 do not read


@dataclass(frozen=True)
class Target:
    """One architecture. shared: bytes of shared memory that a block can have. assembler: which of the two
    that Triton brings; the older one, whose files older drivers read, wherever it knows the architecture.
    driver: see `Variant`. registers: that the threads of a block can have together.
    """

    architecture: int
    shared: int
    driver: int = 12000
    assembler: str = "ptxas"
    registers: int = 1 << 16

    @property
    def variant(self) -> Variant:
        """What is built for it."""
        return Variant(f"sm_{self.architecture}", self.driver)


TARGETS = {
    target.architecture: target
    for target in (
        Target(80, 163 << 10),  # A100
        Target(86, 99 << 10),  # RTX 30
        Target(87, 163 << 10),  # Orin
        Target(89, 99 << 10),  # RTX 40
        Target(90, 227 << 10),  # H100
        Target(110, 227 << 10, 13000, _BLACKWELL),  # Thor
        Target(120, 99 << 10, 12080),  # RTX 50
    )
}
