"""What is compiled: a Triton function with values for its constants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

POINTERS = ("*fp16", "*bf16", "*fp32", "*i32", "*i16", "*i8", "*u8", "*u16", "*u64")
SCALARS = ("i32", "i64", "fp32")


@dataclass(frozen=True)
class Entry:
    """One kernel that can be launched.

    id: unique, the operator's name and what tells its variants apart, for example `linear_int4.g32.r16`.
    function: decorated with `triton.jit`. signature: type of every argument that is no constant, by name, in
    the function's order; `*fp16` is a pointer to memory that begins at a multiple of 16 bytes.
    constants: values of the others. aligned: whole numbers that are multiples of 16.
    warps, stages: of Triton; a block has 32 * warps threads. registers: most that a thread may have (Triton's
    `maxnreg`); None leaves it to ptxas, which may spill a few so that one more block fits.
    """

    id: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 2
    registers: int | None = None

    def __post_init__(self) -> None:
        names = [name for name in self.function.arg_names if name not in self.constants]
        if names != list(self.signature):
            raise ValueError(
                f"{self.id}: the function takes {names}, the signature says {list(self.signature)}."
            )
        unknown = set(self.signature.values()) - {*POINTERS, *SCALARS}
        if unknown:
            raise ValueError(f"{self.id}: unknown types {sorted(unknown)}.")


def by_id(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Entries by their ids, which must differ."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.id in found:
            raise ValueError(f"Two entries have the id {entry.id}.")
        found[entry.id] = entry
    return found
