"""What is read from a kernel's machine code, as ptxas made it for sm_87: instructions and what they load."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import triton

from edge.executors.cuda.launching import THREADS
from edge.kernels.build import compile_one
from edge.kernels.catalogue import ENTRIES
from edge.kernels.compiling import Lowered
from edge.kernels.store import Store, sources_of
from edge.kernels.targets import TARGETS
from edge.kernels.usage import Usage

ARCHITECTURE = 87
"""Of the machine code: other devices get the same PTX, and some other instructions of it."""

STORE = Path(__file__).resolve().parents[2] / "build" / "cubins-store"
_LABEL = re.compile(r"^(\.L[\w.]+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;")
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L[\w.]+)\)")
_WIDTHS = {"8": 1, "16": 2, "64": 8, "128": 16}
_MULTIPLY_ADDS = {"HMMA.16816": 16 * 8 * 16, "HMMA.1688": 16 * 8 * 8}


@dataclass(frozen=True)
class Part:
    """Instructions of a warp in one go. multiply_adds: by tensor cores. loaded: bytes of its loads from
    memory.
    """

    instructions: int
    multiply_adds: int
    loaded: int

    @classmethod
    def of(cls, lines: Sequence[str]) -> Part:
        """Of a listing's lines."""
        counts = [(line, re.match(r"[A-Z0-9.]+", line)) for line in lines]
        names = [found[0] for _, found in counts if found]
        sums = sum(adds for name in names for start, adds in _MULTIPLY_ADDS.items() if name.startswith(start))
        loaded = sum(_width(name) for name in names if re.match(r"LDG(STS)?\b", name))
        return cls(len(names), sums, loaded * THREADS)

    def __sub__(self, other: Part) -> Part:
        return Part(
            self.instructions - other.instructions,
            self.multiply_adds - other.multiply_adds,
            self.loaded - other.loaded,
        )


@dataclass(frozen=True)
class Code:
    """A kernel: its main loop, and all else, which every warp goes through once. in_flight: bytes that a
    program has asked for at a time. shared: bytes of a program.
    """

    usage: Usage
    warps: int
    shared: int
    loop: Part
    rest: Part
    in_flight: int

    def programs(self, registers: int, shared: int, warps: int, blocks: int) -> int:
        """How many a multiprocessor of such limits holds; registers are given out by 256 a warp."""
        a_warp = -(-self.usage.registers * THREADS // 256) * 256
        held = self.shared + 1024  # the system's own
        return max(1, min(blocks, warps // self.warps, registers // (a_warp * self.warps), shared // held))


@cache
def code_of(kernel: str) -> Code:
    """Of an entry, which is compiled first unless that was done."""
    usage, lowered, cubin = compiled(kernel)
    lines, loops = parts_of(_listing(cubin))
    main = max(loops, key=lambda loop: (any("LDGSTS" in line for line in loop), len(loop)), default=[])
    whole, loop = Part.of(lines), Part.of(main)
    shared = lowered.shared + usage.shared
    asked = max(loop.loaded, (whole - loop).loaded) * lowered.warps
    if any("LDGSTS" in line for line in main):  # in a pipeline, as far as it has room
        asked = min(loop.loaded * lowered.warps * (ENTRIES[kernel].stages - 1), shared)
    return Code(usage, lowered.warps, shared, loop, whole - loop, asked)


def compiled(kernel: str) -> tuple[Usage, Lowered, bytes]:
    """What an entry needs, its PTX, and its cubin."""
    target, store, sources = TARGETS[ARCHITECTURE], Store(STORE), sources_of(ENTRIES[kernel])
    if not store.has(sources, [target]):
        compile_one(kernel, [ARCHITECTURE], STORE)
    usage, lowered = store.usage(sources, target), store.lowered(sources)
    assert usage is not None and lowered is not None
    return usage, lowered, store.cubin(sources, target)


def parts_of(listing: str) -> tuple[list[str], list[list[str]]]:
    """All instructions of nvdisasm's listing, without their conditions, and those of each loop."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(lines)
        elif found := _INSTRUCTION.match(line):
            lines.append(found[1])
            branch = _BRANCH.search(found[1])
            start = labels.get(branch[1]) if branch else None
            if start is not None and start < len(lines) - 1:  # the last instruction leads to itself
                loops.append(lines[start:])
    end = next((at for at in range(len(lines), 0, -1) if lines[at - 1] != "NOP"), 0)
    return lines[:end], loops


def _listing(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", "-ndf", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _width(name: str) -> int:
    """Bytes that an instruction loads by each thread."""
    return next(
        (_WIDTHS[part.lstrip("US")] for part in name.split(".")[1:] if part.lstrip("US") in _WIDTHS), 4
    )
