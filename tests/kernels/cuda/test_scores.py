"""Scores of blocks on a simulated device, against the written reference; and what is selected by them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.scores import chunks
from edge.model.attention.sparse import chosen_blocks
from tests.kernels.cuda.caches import DEAD, Cache, Step
from tests.kernels.cuda.runs import exact_scores, scored

SPARSE = SparseConfig(init_blocks=1, window_size=128, topk=4, dense_len=192)
CHAIN = tuple(range(-1, 63))


@pytest.mark.parametrize(
    ("head_dim", "group", "exact_lse"), [(64, 1, False), (128, 2, True), (64, 8, True), (128, 16, False)]
)
def test_scores_and_selections_are_the_references(
    device: Device, head_dim: int, group: int, exact_lse: bool
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
            blocks = exact_scores(cache, step, i, q[row], head, sparse)
            scored_blocks = len(blocks) - sparse.local_blocks
            expected = blocks[:scored_blocks].numpy()
            assert np.allclose(found[row, head, :scored_blocks], expected, rtol=1e-4, atol=0), (row, head)
            assert np.isnan(found[row, head, scored_blocks:]).all()
            assert lists[2 * row + head] == chosen_blocks(blocks, length, sparse), (row, head)


def test_until_a_coarse_window_is_complete_fine_ones_normalise(device: Device) -> None:
    sparse, step = replace(SPARSE, window_size=64, dense_len=0), Step(0, 126, 2)
    cache = Cache.of(device, [128], summaries=True)
    cache.summarise(0, 0, 126)
    cache.upload()
    q = np.random.default_rng(0).standard_normal((2, 2, 64)).astype(np.float16)
    found, _ = scored(cache, [step], q, sparse)
    for i in range(2):
        assert np.allclose(
            found[i, 0, :1], exact_scores(cache, step, i, q[i], 0, sparse)[:1], rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("exact_lse", [False, True])
def test_a_normaliser_of_several_chunks(device: Device, exact_lse: bool) -> None:
    sparse, group, step = replace(SPARSE, exact_lse=exact_lse), 2, Step(0, 8700, 1)
    cache = Cache.of(device, [8701], summaries=True)
    cache.summarise(0, 0, 8701)
    cache.upload()
    q = np.random.default_rng(0).standard_normal((1, group, 64)).astype(np.float16)
    assert chunks(8704 // 64, sparse) == (5 if exact_lse else 2)
    found, _ = scored(cache, [step], q, sparse)
    expected = exact_scores(cache, step, 0, q[0], 0, sparse)[:-2].numpy()
    assert np.allclose(found[0, 0, : len(expected)], expected, rtol=1e-4, atol=0)


def test_scores_far_above_the_normaliser_are_bounded(device: Device) -> None:
    cache = Cache.of(device, [400], summaries=True)
    signs = np.where(np.arange(512) // 64 % 2, -8, 8)  # fine windows are far from 0, coarse ones are not
    cache.arrays["keys"][0, cache.page_table[0], 0] = signs.reshape(2, 256, 1)
    cache.summarise(0, 0, 400)
    cache.upload()
    q = np.full((1, 2, 64), 4, np.float16)
    found, _ = scored(cache, [Step(0, 399, 1)], q, SPARSE)
    expected = exact_scores(cache, Step(0, 399, 1), 0, q[0], 0, SPARSE)[:-2].numpy()
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
