"""A node of a token tree gives the bits of the same tokens in a row, through all kernels of attention: during
the tree's step, and once its rows have moved to where the plain ones stand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.executors.cuda.device import Device
from edge.executors.cuda.operators import attention
from edge.executors.cuda.operators.pages import move
from edge.executors.cuda.operators.rope import angles, rope
from edge.executors.cuda.operators.scores import chunks, scores
from edge.executors.cuda.operators.selection import Selection, select, selected_blocks
from edge.executors.cuda.operators.summaries import path_windows_bytes, summaries
from edge.executors.cuda.operators.tables import TREE
from tests.kernels.cuda.caches import DEAD, Array, Cache, Step
from tests.kernels.cuda.memory import fetched, sent

SPARSE = SparseConfig(init_blocks=1, window_size=64, topk=3, dense_len=64)
HEADS, HEAD_DIM = 6, 64
PARENTS = (-1, 0, 0, 1, 3, 2, 4, 6)
NODE = 7  # at depth 5
COLUMNS = (HEADS + 2 * 2) * HEAD_DIM


def passed(cache: Cache, steps: Sequence[Step], partial: Array) -> Array:
    """A sparse layer's part that is here, of a pass: float16 [rows, heads, head_dim]."""
    device, shape, tables = cache.device, cache.pools.shape, cache.tables(steps)
    rows, blocks, capacity = tables.rows, tables.blocks, selected_blocks(SPARSE)
    splits = attention.splits(max(blocks, capacity))

    def scratch(*sizes: int) -> int:
        return sent(device, np.full(sizes, np.nan, np.float32))

    turned, q, x = scratch(rows, HEAD_DIM), scratch(rows, HEADS, HEAD_DIM), scratch(rows, HEADS, HEAD_DIM)
    windows = scratch(path_windows_bytes(rows, shape.kv_heads, HEAD_DIM) // 4)
    of_blocks = scratch(rows, shape.kv_heads, blocks)
    selection = Selection(scratch(rows, shape.kv_heads, capacity), scratch(rows, shape.kv_heads), capacity)
    frequencies = sent(device, (1 / 10000 ** (np.arange(32) / 32)).astype(np.float32))
    angles(device, tables, frequencies, turned, head_dim=HEAD_DIM, scale=1.0)
    rope(device, tables, cache.pools, sent(device, partial), turned, q, slices=1, heads=HEADS)
    summaries(device, tables, cache.pools, windows)
    parts = scratch(rows, HEADS, chunks(blocks, SPARSE), 2)
    scores(device, tables, cache.pools, SPARSE, q, windows, parts, of_blocks, heads=HEADS)
    select(device, tables, SPARSE, of_blocks, selection, kv_heads=shape.kv_heads)
    sums, tops = scratch(rows, HEADS, splits, HEAD_DIM), scratch(rows, HEADS, splits, 2)
    attention.decode(
        *(device, tables, cache.pools, q, sums, tops, x),
        heads=HEADS,
        blocks=max(blocks, capacity),
        selection=selection,
    )
    return fetched(device, x, (rows, HEADS, HEAD_DIM), np.float16)


@pytest.mark.parametrize("int8", [False, True], ids=["f16", "int8"])
def test_a_node_is_its_tokens_in_a_row(device: Device, int8: bool) -> None:
    before = 508  # its rows go over the borders of a block and a page; a fine and a coarse window end there
    tree, random = Step(0, before, len(PARENTS), PARENTS), np.random.default_rng(0)
    path = tree.ancestors(NODE)
    cache = Cache.of(device, [520, 520], kv_heads=2, int8=int8, summaries=True)
    for name in ("keys", "values", "key_scales", "value_scales"):
        cache.arrays[name][:, cache.page_table[1]] = cache.arrays[name][:, cache.page_table[0]]
    for sequence in range(2):
        cache.summarise(sequence, 0, before)
    cache.upload()
    partial = random.standard_normal((1, tree.n, COLUMNS)).astype(np.float32)
    of_tree = passed(cache, [tree, DEAD], np.concatenate([partial, partial[:, :1]], 1))
    plain = passed(cache, [Step(1, before, len(path))], partial[:, path])
    assert np.array_equal(of_tree[path], plain)

    kept = np.full((1, TREE), -1, np.int32)
    kept[0, : len(path)] = [before + i for i in path]
    one = [sent(device, np.array([value], np.int32)) for value in (0, before, len(path))]
    move(
        *(device, cache.pools, sent(device, cache.page_table), one[0], one[1], sent(device, kept), one[2]),
        moves=1,
        max_pages=cache.page_table.shape[1],
    )
    summaries(device, cache.tables([Step(0, before, len(path))]), cache.pools, 0)
    end = before + len(path)
    cache.arrays.update(cache.download())
    for name in ("keys", "values"):
        assert np.array_equal(*(cache.rows(name, sequence, range(end)) for sequence in range(2)))
    for name in ("fine", "coarse"):
        of_each = (cache.arrays[name][0, pages] for pages in cache.page_table)
        assert np.array_equal(*of_each, equal_nan=True)
    following = random.standard_normal((1, 1, COLUMNS)).astype(np.float32)
    after = [passed(cache, [Step(sequence, end, 1)], following) for sequence in range(2)]
    assert np.array_equal(*after)
