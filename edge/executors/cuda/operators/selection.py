"""Which blocks a row reads in sparse attention, see `kernels/cuda/selection.py`."""

from __future__ import annotations

from dataclasses import dataclass

from edge.config import SparseConfig
from edge.errors import ContextError
from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.operators.tables import BLOCK, StepTables

WIDTHS = (512, 2048, 8192)
"""Most blocks that a kernel chooses from; one is compiled for each."""


@dataclass(frozen=True)
class Selection:
    """Addresses of int32 arrays. blocks: [rows, kv_heads, capacity], ids, ascending. counts: [rows,
    kv_heads], how many; -1: a dense row, which reads all; 0: a dead one. capacity: `selected_blocks`.
    """

    blocks: Address
    counts: Address
    capacity: int

    def part(self, first: int, kv_heads: int) -> Selection:
        """Of rows from `first`, a multiple of 4, on."""
        at = 4 * first * kv_heads
        return Selection(self.blocks + at * self.capacity, self.counts + at, self.capacity)


def selected_blocks(sparse: SparseConfig) -> int:
    """Most blocks that a sparse row reads."""
    return sparse.topk + sparse.local_blocks


def check_blocks(blocks: int) -> None:
    """ContextError for more blocks than the kernels choose from."""
    if blocks > WIDTHS[-1]:
        raise ContextError(
            f"Sparse attention on a GPU reaches {WIDTHS[-1] * BLOCK} positions, not {blocks * BLOCK}: give a "
            "smaller context."
        )


def select(
    device: Device,
    tables: StepTables,
    sparse: SparseConfig,
    block_scores: Address,
    into: Selection,
    *,
    kv_heads: int,
) -> None:
    """The selection of every row. block_scores: see `scores`."""
    width = next(width for width in WIDTHS if tables.blocks <= width)
    device.launch(
        f"selection.b{width}",
        (tables.rows, kv_heads, 1),
        (
            *(block_scores, into.blocks, into.counts, tables.sequences, tables.path, kv_heads, tables.blocks),
            *(
                into.capacity,
                sparse.dense_len,
                sparse.init_blocks,
                sparse.local_blocks,
                sparse.dynamic_blocks,
            ),
        ),
    )
