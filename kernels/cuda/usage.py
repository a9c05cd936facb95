"""What the machine code of a kernel needs, read from what ptxas and nvdisasm say, and the rules for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge.executors.cuda.launching import THREADS
from edge.kernels.targets import Target

_TENSOR_CORES = re.compile(r"\b[HI]MMA\b")
_WIDE_LOADS = re.compile(r"\bLDG(?:STS)?\b\S*\.128\b")


@dataclass(frozen=True)
class Usage:
    """registers: of a thread. stack, spills, shared: bytes of a thread's stack, of what it spills, and of
    static shared memory. tensor_cores, wide_loads: how many instructions of tensor cores and loads of 128
    bits there are.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    tensor_cores: int
    wide_loads: int

    @classmethod
    def read(cls, said: str, listing: str) -> Usage:
        """From the words of `ptxas -v` and the listing of nvdisasm."""

        def number(pattern: str) -> int:
            return sum(int(each) for each in re.findall(pattern, said))

        assert re.search(r"Used \d+ registers", said), said
        return cls(
            registers=number(r"Used (\d+) registers"),
            stack=number(r"(\d+) bytes stack frame"),
            spills=number(r"(\d+) bytes spill"),
            shared=number(r"(\d+) bytes smem"),
            tensor_cores=len(_TENSOR_CORES.findall(listing)),
            wide_loads=len(_WIDE_LOADS.findall(listing)),
        )

    def faults(self, target: Target, *, warps: int, dynamic_shared: int) -> list[str]:
        """The rules that a kernel of so many warps breaks, in words."""
        found = [f"{self.stack} bytes of stack"] if self.stack else []
        found += [f"{self.spills} bytes of spills"] if self.spills else []
        registers = -(-self.registers // 8) * 8 * THREADS * warps  # they are given out by eight
        found += [f"{registers} registers of {target.registers}"] if registers > target.registers else []
        shared = dynamic_shared + self.shared
        return found + (
            [f"{shared} bytes of shared memory of {target.shared}"] if shared > target.shared else []
        )
