"""Attention and the choice of blocks over a cache of `caches.py`: as a device computes them, and exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from edge.config import SparseConfig
from edge.executors.cuda.device import Device
from edge.executors.cuda.operators import attention
from edge.executors.cuda.operators.scores import chunks, scores
from edge.executors.cuda.operators.selection import Selection, select, selected_blocks
from edge.executors.cuda.operators.summaries import path_windows_bytes, summaries
from edge.model.attention import sparse as written
from edge.model.attention.key_summaries import KeySummaries
from tests.kernels.cuda.caches import Array, Cache, Step
from tests.kernels.cuda.memory import fetched, sent

Lists = Sequence[Sequence[int]]  # of each row and KV head; [-1] for all blocks


def queries(rows: int, heads: int, head_dim: int) -> Array:
    """Random ones."""
    return np.random.default_rng(rows).standard_normal((rows, heads, head_dim)).astype(np.float16)


def decoded(cache: Cache, steps: Sequence[Step], q: Array, lists: Lists = ()) -> Array:
    """float16 [rows, heads, d] of `decode`."""
    device, tables, heads = cache.device, cache.tables(steps), q.shape[1]
    selection = _selection(device, lists, cache.pools.shape.kv_heads) if lists else None
    blocks = max(tables.blocks, selection.capacity if selection else 0)
    splits = attention.splits(blocks)
    parts = sent(device, np.full((*q.shape[:2], splits, q.shape[2]), np.nan, np.float32))
    tops = sent(device, np.full((*q.shape[:2], splits, 2), np.nan, np.float32))
    x = sent(device, np.full(q.shape, np.nan, np.float16))
    attention.decode(
        *(device, tables, cache.pools, sent(device, q), parts, tops, x),
        heads=heads,
        blocks=blocks,
        selection=selection,
    )
    return fetched(device, x, q.shape, np.float16)


def prefilled(cache: Cache, steps: Sequence[Step], q: Array, lists: Lists = ()) -> Array:
    """The same of `prefill`."""
    device, tables, heads = cache.device, cache.tables(steps), q.shape[1]
    selection = _selection(device, lists, cache.pools.shape.kv_heads) if lists else None
    runs, first = [], 0
    for step in steps:
        runs.append((first, step.before, len(step.rows)))
        first += len(step.rows)
    rows = 1 if lists else attention.tile_rows(heads, cache.pools.shape.kv_heads, q.shape[2])
    tiles = attention.tiles(runs, rows)
    x = sent(device, np.full(q.shape, np.nan, np.float16))
    attention.prefill(
        *(device, tables, cache.pools, sent(device, q), sent(device, tiles), x),
        count=len(tiles),
        heads=heads,
        selection=selection,
    )
    return fetched(device, x, q.shape, np.float16)


def exact(cache: Cache, steps: Sequence[Step], q: Array, lists: Lists = ()) -> Array:
    """float64 [rows, heads, d], 0 of dead rows."""
    kv_heads = cache.pools.shape.kv_heads
    found = np.zeros(q.shape)
    row = 0
    for step in steps:
        for i in step.rows:
            if step.sequence >= 0:
                rows = step.rows_seen(i)
                keys, values = (
                    torch.from_numpy(cache.rows(name, step.sequence, rows)).double()
                    for name in ("keys", "values")
                )
                for head, queries in enumerate(np.split(q[row], kv_heads)):
                    blocks = list(lists[row * kv_heads + head]) if lists else [-1]
                    blocks = list(range(-(-len(rows) // 64))) if blocks == [-1] else blocks
                    part = written.attend(
                        torch.from_numpy(queries).double(), keys[head], values[head], blocks, 64
                    )
                    found[row].reshape(kv_heads, -1, q.shape[2])[head] = part.numpy()
            row += 1
    return found


def scored(
    cache: Cache, steps: Sequence[Step], q: Array, sparse: SparseConfig
) -> tuple[Array, list[list[int]]]:
    """(block scores [rows, kv_heads, blocks], NaN where none was written; blocks by row and head)."""
    device, shape, tables = cache.device, cache.pools.shape, cache.tables(steps)
    rows, heads = q.shape[:2]
    assert rows == tables.rows
    floats = path_windows_bytes(rows, shape.kv_heads, shape.head_dim) // 2
    of_paths = sent(device, np.full(floats, np.nan, np.float16))
    size = (rows, shape.kv_heads, tables.blocks)
    into = sent(device, np.full(size, np.nan, np.float32))
    parts = sent(device, np.full((rows, heads, chunks(tables.blocks, sparse), 2), np.nan, np.float32))
    summaries(device, tables, cache.pools, of_paths)
    scores(device, tables, cache.pools, sparse, sent(device, q), of_paths, parts, into, heads=heads)
    capacity = selected_blocks(sparse)
    ids, counts = (device.allocate(rows * shape.kv_heads * n * 4) for n in (capacity, 1))
    select(device, tables, sparse, into, Selection(ids, counts, capacity), kv_heads=shape.kv_heads)
    blocks = fetched(device, ids, (rows, shape.kv_heads, capacity), np.int32)
    numbers = fetched(device, counts, (rows, shape.kv_heads), np.int32)
    lists = [
        blocks[row, head, : max(numbers[row, head], 0)].tolist()
        for row in range(rows)
        for head in range(shape.kv_heads)
    ]
    return fetched(device, into, size, np.float32), lists


def exact_scores(cache: Cache, step: Step, i: int, q: Array, head: int, sparse: SparseConfig) -> torch.Tensor:
    """Scores of the blocks on the path of row i of a step; q [heads, d] of the row."""
    keys = torch.from_numpy(cache.rows("keys", step.sequence, step.rows_seen(i))[head]).double()
    whole = KeySummaries.of(keys, sparse)
    kept = replace(whole, fine=whole.fine.half(), coarse=whole.coarse.half())  # as the cache keeps them
    group = len(q) // cache.pools.shape.kv_heads
    of_group = torch.from_numpy(q[head * group : (head + 1) * group])
    return written.block_scores(written.kernel_scores(of_group, kept, sparse.exact_lse), len(keys), sparse)


def _selection(device: Device, lists: Lists, kv_heads: int) -> Selection:
    capacity = max(map(len, lists))
    ids = np.full((len(lists), capacity), 10**6, np.int32)
    for index, blocks in enumerate(lists):
        ids[index, : len(blocks)] = blocks
    counts = [-1 if list(blocks) == [-1] else len(blocks) for blocks in lists]
    return Selection(sent(device, ids), sent(device, np.array(counts, np.int32)), capacity)
