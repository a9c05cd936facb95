"""Scores of blocks on a simulated device, against the written reference; and what is selected by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from edge.config import SparseConfig
from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.scores import chunks, scores
from edge.executors.cuda.operators.selection import Selection, select, selected_blocks
from edge.executors.cuda.operators.summaries import path_windows_bytes, summaries
from edge.model.attention import sparse as written
from edge.model.attention.key_summaries import KeySummaries
from tests.kernels.cuda.caches import DEAD, Array, Cache, Step
from tests.kernels.cuda.memory import fetched, sent

SPARSE = SparseConfig(init_blocks=1, window_size=128, topk=4, dense_len=192)
CHAIN = tuple(range(-1, 63))


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


def reference(cache: Cache, step: Step, i: int, q: Array, head: int, sparse: SparseConfig) -> torch.Tensor:
    """Scores of the blocks on the path of row i of a step; q [heads, d] of the row."""
    keys = torch.from_numpy(cache.rows("keys", step.sequence, step.rows_seen(i))[head]).double()
    exact = KeySummaries.of(keys, sparse)
    kept = replace(exact, fine=exact.fine.half(), coarse=exact.coarse.half())  # as the cache keeps them
    group = len(q) // cache.pools.shape.kv_heads
    of_group = torch.from_numpy(q[head * group : (head + 1) * group])
    return written.block_scores(written.kernel_scores(of_group, kept, sparse.exact_lse), len(keys), sparse)


@pytest.mark.parametrize(
    ("head_dim", "group", "exact_lse"), [(64, 1, False), (128, 2, True), (64, 8, True), (128, 16, False)]
)
def test_scores_and_selections_are_the_references(
    device: Device, monkeypatch: pytest.MonkeyPatch, head_dim: int, group: int, exact_lse: bool
) -> None:
    random = np.random.default_rng(head_dim + group)
    sparse = replace(SPARSE, exact_lse=exact_lse)
    # The last path has 64 rows of its own: four fine windows and a coarse one end there.
    steps = [Step(0, 700, 1), DEAD, Step(1, 191, 2), Step(2, 450, 64, CHAIN, first=62)]
    cache = Cache.of(device, [702, 194, 514], kv_heads=2, head_dim=head_dim, summaries=True)
    for sequence, before in ((0, 700), (1, 191), (2, 450)):
        cache.summarise(sequence, 0, before)
    cache.upload()
    rows = [(step, i) for step in steps for i in step.rows]
    q = (2 * random.standard_normal((len(rows), 2 * group, head_dim))).astype(np.float16)
    found, lists = scored(cache, steps, q, sparse)
    for row, (step, i) in enumerate(rows):
        length = 0 if step.sequence < 0 else len(step.rows_seen(i))
        for head in range(2):
            if length <= sparse.dense_len:
                assert np.isnan(found[row, head]).all()
                assert lists[2 * row + head] == []
                continue
            blocks = reference(cache, step, i, q[row], head, sparse)
            scored_blocks = len(blocks) - sparse.local_blocks
            expected = blocks[:scored_blocks].numpy()
            assert np.allclose(found[row, head, :scored_blocks], expected, rtol=1e-4, atol=0), (row, head)
            assert np.isnan(found[row, head, scored_blocks:]).all()
            monkeypatch.setattr(written, "block_scores", lambda *_, blocks=blocks: blocks)
            selected = written.select_blocks(torch.zeros(1, 8), torch.zeros(length, 8), sparse)
            monkeypatch.undo()
            assert lists[2 * row + head] == selected, (row, head)


def test_until_a_coarse_window_is_complete_fine_ones_normalise(device: Device) -> None:
    sparse, step = replace(SPARSE, window_size=64, dense_len=0), Step(0, 126, 2)
    cache = Cache.of(device, [128], summaries=True)
    cache.summarise(0, 0, 126)
    cache.upload()
    q = np.random.default_rng(0).standard_normal((2, 2, 64)).astype(np.float16)
    found, _ = scored(cache, [step], q, sparse)
    for i in range(2):
        assert np.allclose(found[i, 0, :1], reference(cache, step, i, q[i], 0, sparse)[:1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("exact_lse", [False, True])
def test_a_normaliser_of_several_chunks(device: Device, exact_lse: bool) -> None:
    sparse, group, step = replace(SPARSE, exact_lse=exact_lse), 2, Step(0, 8700, 1)
    cache = Cache.of(device, [8701], summaries=True)
    cache.summarise(0, 0, 8701)
    cache.upload()
    q = np.random.default_rng(0).standard_normal((1, group, 64)).astype(np.float16)
    assert chunks(8704 // 64, sparse) == (5 if exact_lse else 2)
    found, _ = scored(cache, [step], q, sparse)
    expected = reference(cache, step, 0, q[0], 0, sparse)[:-2].numpy()
    assert np.allclose(found[0, 0, : len(expected)], expected, rtol=1e-4, atol=0)


def test_scores_far_above_the_normaliser_are_bounded(device: Device) -> None:
    cache = Cache.of(device, [400], summaries=True)
    signs = np.where(np.arange(512) // 64 % 2, -8, 8)  # fine windows are far from 0, coarse ones are not
    cache.arrays["keys"][0, cache.page_table[0], 0] = signs.reshape(2, 256, 1)
    cache.summarise(0, 0, 400)
    cache.upload()
    q = np.full((1, 2, 64), 4, np.float16)
    found, _ = scored(cache, [Step(0, 399, 1)], q, SPARSE)
    expected = reference(cache, Step(0, 399, 1), 0, q[0], 0, SPARSE)[:-2].numpy()
    assert expected.max() > 1e34
    assert np.allclose(found[0, 0, : len(expected)], expected, rtol=1e-4, atol=1e-30)


def test_a_row_is_scored_alike_alone_and_beside_others(device: Device) -> None:
    steps = [Step(0, 500, 2), Step(1, 300, 4, (-1, 0, 0, 2)), Step(2, 333, 1)]
    cache = Cache.of(device, [502, 304, 334], kv_heads=2, summaries=True)
    for step in steps:
        cache.summarise(step.sequence, 0, step.before)
    cache.upload()
    q = np.random.default_rng(0).standard_normal((7, 6, 64)).astype(np.float16)
    together, lists = scored(cache, steps, q, SPARSE)
    first = 0
    for step in steps:
        alone, own_lists = scored(cache, [DEAD, step], q[[0, *range(first, first + step.n)]], SPARSE)
        assert np.array_equal(alone[1:], together[first : first + step.n], equal_nan=True)
        assert own_lists[2:] == lists[2 * first : 2 * (first + step.n)]
        first += step.n
