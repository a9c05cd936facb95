"""What was compiled before, by a hash of all that it comes from: a build goes on where one was ended."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import triton

from edge.errors import EdgeError
from edge.formats.atomic import write_file
from edge.formats.guarded_json import parse_object
from edge.formats.hashing import json_digest
from edge.kernels.compiling import ASSEMBLER_OPTIONS, OPTIONS, Lowered, assembler
from edge.kernels.entry import Entry
from edge.kernels.targets import LOWERED_FOR, TARGETS, Target
from edge.kernels.usage import Usage

_LOWERED = "lowered.json"


def sources_of(entry: Entry) -> str:
    """A digest of the function, all that it calls, its constants and options, and the compilers."""
    return json_digest(
        {
            "function": entry.function.cache_key,  # with what it calls and the global values that it reads
            "signature": list(entry.signature.items()),
            "constants": {name: repr(value) for name, value in entry.constants.items()},
            "aligned": sorted(entry.aligned),
            "options": [entry.warps, entry.stages, entry.registers, LOWERED_FOR, OPTIONS, ASSEMBLER_OPTIONS],
            "compilers": [triton.__version__, *_assembler_versions()],
        }
    )


class Store:
    """Results in a folder, one inside it for each digest of `sources_of`. Files appear there whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep_lowered(self, sources: str, lowered: Lowered) -> None:
        """Remember the PTX."""
        self._write(sources, _LOWERED, json.dumps(asdict(lowered)).encode())

    def keep_cubin(self, sources: str, target: Target, cubin: bytes, usage: Usage) -> None:
        """Remember a cubin."""
        self._write(sources, f"{target.variant.name}.cubin", cubin)
        self._write(sources, f"{target.variant.name}.json", json.dumps(asdict(usage)).encode())

    def lowered(self, sources: str) -> Lowered | None:
        """The PTX, if it is there."""
        found = self._read(sources, _LOWERED)
        return None if found is None else Lowered(**found)

    def usage(self, sources: str, target: Target) -> Usage | None:
        """What a cubin needs, if it is there."""
        found = self._read(sources, f"{target.variant.name}.json")
        return None if found is None else Usage(**found)

    def has(self, sources: str, targets: Iterable[Target]) -> bool:
        """Whether there is nothing left to compile."""
        missing = [target for target in targets if self.usage(sources, target) is None]
        return self.lowered(sources) is not None and not missing

    def cubin(self, sources: str, target: Target) -> bytes:
        """One that `usage` finds."""
        return (self._folder / sources / f"{target.variant.name}.cubin").read_bytes()

    def forget_others(self, sources: Collection[str]) -> None:
        """Remove what comes from other sources than these."""
        for path in self._folder.iterdir():
            if path.name not in sources:
                shutil.rmtree(path)

    def _read(self, sources: str, name: str) -> dict[str, Any] | None:
        path = self._folder / sources / name
        return parse_object(path.read_bytes(), path, EdgeError, "remove it") if path.exists() else None

    def _write(self, sources: str, name: str, data: bytes) -> None:
        (self._folder / sources).mkdir(parents=True, exist_ok=True)
        write_file(self._folder / sources / name, data)


@cache
def _assembler_versions() -> list[str]:
    paths = sorted({assembler(target) for target in TARGETS.values()})
    return [
        subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        for path in paths
    ]
