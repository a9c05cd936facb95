"""Attention over the KV cache, see `kernels/cuda/attention.py`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.operators.pages import CachePools
from edge.executors.cuda.operators.scores import LOG2E
from edge.executors.cuda.operators.selection import Selection
from edge.executors.cuda.operators.tables import StepTables

SPLITS, SPLIT_BLOCKS = 64, 4
"""A row's blocks are taken in at most 64 splits of 4 * 2^k blocks, the same for all."""

DECODE_HEADS = 16
"""Rows of queries, one a head, of a program of decode and of sparse prefill: all of one token."""

PREFILL_TILES = {64: 64, 128: 32}
"""The same of dense prefill, by head_dim: what fits in the registers. Of several tokens."""

COMBINED_HEADS = 4
"""Heads of a program that merges splits."""


def splits(blocks: int) -> int:
    """Most splits of rows that read up to so many blocks."""
    return min(SPLITS, -(-blocks // SPLIT_BLOCKS))


def decode(
    device: Device,
    tables: StepTables,
    pools: CachePools,
    q: Address,
    parts: Address,
    tops: Address,
    x: Address,
    *,
    heads: int,
    blocks: int,
    selection: Selection | None = None,
) -> None:
    """Attention of each row, with a program for each split of its keys: x float16 [rows, heads * head_dim].

    pools: of one layer. q: float16 [rows, heads, head_dim]. blocks: most that a row reads, from which the
    number of splits in scratch follows: parts float32 [rows, heads, splits, head_dim], tops float32 [rows,
    heads, splits, 2]. selection: of sparse attention. Dead rows are 0.
    """
    shape, most = pools.shape, splits(blocks)
    kind = ".sparse" if selection else ""
    chosen = (selection.blocks, selection.counts) if selection else (0, 0)
    device.launch(
        f"attention.decode{kind}.{shape.variant}",
        (tables.rows, _head_tiles(heads, shape.kv_heads, DECODE_HEADS), most),
        (
            *(q, *pools.rows, *chosen, *tables.of_rows, 0, parts, tops, 0),
            *(heads, shape.kv_heads, DECODE_HEADS, selection.capacity if selection else 0),
            shape.head_dim**-0.5 * LOG2E,
        ),
    )
    device.launch(
        f"attention.combine{kind}.d{shape.head_dim}",
        (tables.rows, _head_tiles(heads, shape.kv_heads, COMBINED_HEADS), 1),
        (parts, tops, x, chosen[1], tables.sequences, tables.path, heads, shape.kv_heads, most),
    )


def _head_tiles(heads: int, kv_heads: int, width: int) -> int:
    """Tiles of `width` heads, none of which has heads of two groups."""
    return kv_heads * -(-(heads // kv_heads) // width)


def tile_heads(heads: int, kv_heads: int, head_dim: int) -> int:
    """Heads of a group that a tile of dense prefill has: the group, up to the next power of 2."""
    return min(PREFILL_TILES[head_dim], 1 << (heads // kv_heads - 1).bit_length())


def tile_rows(heads: int, kv_heads: int, head_dim: int) -> int:
    """Tokens of a tile of dense prefill, a power of 2; of sparse prefill it is 1."""
    return PREFILL_TILES[head_dim] // tile_heads(heads, kv_heads, head_dim)


def tiles(runs: Iterable[tuple[int, int, int]], rows: int) -> npt.NDArray[np.int32]:
    """Rows of a pass that a program of `prefill` takes together: int32 [tiles, 2], the first and how many.

    runs: (first row in the pass, its path position, how many) of causal rows that follow one another in one
    sequence, or of dead ones, each (row, 0, 1). rows: of a tile, see `tile_rows`.
    """
    found = []
    for row, position, count in runs:
        end = row + count
        while row < end:
            taken = min(rows - position % rows, end - row)
            found.append((row, taken))
            row, position = row + taken, position + taken
    return np.array(found, np.int32).reshape(-1, 2)


def prefill(
    device: Device,
    tables: StepTables,
    pools: CachePools,
    q: Address,
    tiles: Address,
    x: Address,
    *,
    count: int,
    heads: int,
    selection: Selection | None = None,
) -> None:
    """The same of causal rows, those of `count` tiles (see above); with a selection a tile is one row.

    A tile's rows are of one sequence, or it is a dead one. A row whose selection says that it is dense gets
    the same bits without a selection, in less time.
    """
    shape = pools.shape
    kind = ".sparse" if selection else ""
    chosen = (selection.blocks, selection.counts) if selection else (0, 0)
    width = DECODE_HEADS if selection else tile_heads(heads, shape.kv_heads, shape.head_dim)
    device.launch(
        f"attention.prefill{kind}.{shape.variant}",
        (count, _head_tiles(heads, shape.kv_heads, width), 1),
        (
            *(q, *pools.rows, *chosen, *tables.of_rows, tiles, 0, 0, x),
            *(heads, shape.kv_heads, width, selection.capacity if selection else 0),
            shape.head_dim**-0.5 * LOG2E,
        ),
    )
