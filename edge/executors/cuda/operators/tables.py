"""What a pass says of its rows, as it stands in device memory: uploaded before it, read by every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge.executors.cuda.device import Address

PAGE = 256
"""Cache rows of a page."""

TREE = 64
"""Most rows of a token tree: no path reaches further into its own step."""

BLOCK = 64
"""Keys that attention takes at a time, and rows of a block of sparse attention."""


@dataclass(frozen=True)
class StepTables:
    """Addresses of int32 arrays, each of [rows] unless it says otherwise: one entry for a row of the pass.

    positions: for RoPE. sequences: row of the page table; -1: a dead row, which nothing is written for.
    slots: cache row that its key and value get. before: rows of its cache before this step. path: its place
    on its own path, which is the rows it sees less itself. is_tree: 1 for a token of a tree, else 0.
    ancestors: [rows, 64], place in the step of its ancestor at each depth, itself last; read for trees only.
    page_table: [sequences, max_pages], ids of pages.

    A row sees path positions 0 .. path. The key at position p stands in cache row p, or, if the row is of a
    tree and p >= before, in cache row before + ancestors[p - before].
    """

    rows: int
    positions: Address
    sequences: Address
    slots: Address
    before: Address
    path: Address
    is_tree: Address
    ancestors: Address
    page_table: Address
    max_pages: int

    def part(self, first: int, rows: int) -> StepTables:
        """Rows from `first`, a multiple of 4, on."""
        moved = {
            name: getattr(self, name) + 4 * first
            for name in ("positions", "sequences", "slots", "before", "path", "is_tree")
        }
        return replace(self, rows=rows, ancestors=self.ancestors + 4 * TREE * first, **moved)

    @property
    def blocks(self) -> int:
        """Most blocks that a row can see."""
        return self.max_pages * (PAGE // BLOCK)

    @property
    def of_rows(self) -> tuple[Address, ...]:
        """What says which keys a row sees, in the order in which kernels take it."""
        return (
            self.sequences,
            self.before,
            self.path,
            self.is_tree,
            self.ancestors,
            self.page_table,
            self.max_pages,
        )
