"""What an export will write and need, known before anything is written; `edge export --dry-run` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edge.config import KVType
from edge.formats.artifact.manifest import RuntimeRange


@dataclass(frozen=True)
class Plan:
    """Bytes and requirements of an artifact.

    files: path in the folder -> bytes of the target's own files, by `formula` (within 2 % of what is
    written). export_memory: most anonymous memory that writing needs. run_memory: what part of the running
    program takes how many bytes at the full context (`weights`, `KV cache`, ...). operators: name -> version.
    flavour: for example `full` or `portable`. attention: what the artifact runs. kv_type: what its caches
    hold, None where the runtime chooses.
    """

    files: Mapping[str, int]
    formula: str
    export_memory: int
    run_memory: Mapping[str, int]
    operators: Mapping[str, int]
    runtime: RuntimeRange
    flavour: str
    attention: Literal["dense", "sparse"]
    kv_type: KVType | None = None
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the target's files together."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the sum."""
        return {**asdict(self), "notes": list(self.notes), "bytes": self.bytes}
