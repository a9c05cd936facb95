"""Attention over pages on a simulated device, against plain attention over the rows of each path."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edge.executors.cuda.device import Device
from edge.executors.cuda.operators import attention
from tests.kernels.cuda.caches import DEAD, Array, Cache, Step
from tests.kernels.cuda.runs import Lists, decoded, exact, prefilled, queries

TREE = (-1, 0, 0, 1, 1, 4)


def check(cache: Cache, steps: Sequence[Step], q: Array, found: Array, lists: Lists = ()) -> None:
    """Against exact attention; probabilities and values are of 11 bits."""
    wanted = exact(cache, steps, q, lists)
    assert np.abs(found - wanted).max() < 2e-3
    dead = np.repeat([step.sequence < 0 for step in steps], [len(step.rows) for step in steps])
    assert (found[dead] == 0).all()


@pytest.mark.parametrize(
    ("head_dim", "group", "kv_heads", "int8"),
    [(64, 1, 3, True), (128, 2, 2, False), (64, 8, 1, False), (128, 16, 2, True), (64, 20, 1, False)],
)
def test_decode_is_attention_over_the_path(
    device: Device, head_dim: int, group: int, kv_heads: int, int8: bool
) -> None:
    cache = Cache.of(device, [321, 262, 64, 1], kv_heads=kv_heads, head_dim=head_dim, int8=int8)
    # Within a block and a page, over the border of a page, at the end of a block, alone.
    steps = [Step(0, 320, 1), DEAD, Step(1, 254, 6, TREE), Step(2, 62, 2), Step(3, 0, 1)]
    q = queries(11, group * kv_heads, head_dim)
    check(cache, steps, q, decoded(cache, steps, q))


def test_a_tree_of_64_rows(device: Device) -> None:
    cache, q = Cache.of(device, [157]), queries(2, 2, 64)
    step = Step(0, 93, 64, tuple(range(-1, 63)), first=62)
    found = decoded(cache, [step], q)
    check(cache, [step], q, found)
    assert np.array_equal(found, decoded(cache, [Step(0, 93, 64, first=62)], q))


@pytest.mark.parametrize("int8", [False, True], ids=["f16", "int8"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_sparse_rows_read_their_blocks_only(device: Device, head_dim: int, int8: bool) -> None:
    cache = Cache.of(device, [700, 325], kv_heads=2, head_dim=head_dim, int8=int8)
    steps = [Step(0, 698, 2), DEAD, Step(1, 319, 6, TREE)]
    lists = [[0, 3, 7, 9, 10], [10], [-1], [0, 1, 2, 3, 8, 9, 10], [], []]  # of causal rows and the dead one
    lists += [[0, 2, 4], [4], *([[0, 4, 5], [5], [1, 2, 3, 4, 5], [-1], [0, 5]] * 2)]
    q = queries(9, 4, head_dim)
    check(cache, steps, q, decoded(cache, steps, q, lists), lists)


@pytest.mark.parametrize(
    ("head_dim", "group", "int8"), [(64, 1, True), (128, 2, False), (64, 12, False), (128, 16, True)]
)
def test_prefill_is_decode(device: Device, head_dim: int, group: int, int8: bool) -> None:
    cache = Cache.of(device, [140, 700], kv_heads=2, head_dim=head_dim, int8=int8)
    # Within a block, over its end, at the end of a split and within its last block.
    steps = [Step(0, 62, 5), DEAD, Step(1, 511, 2), Step(1, 250, 1)]
    q = queries(9, 2 * group, head_dim)
    dense = decoded(cache, steps, q)
    check(cache, steps, q, dense)
    assert np.array_equal(prefilled(cache, steps, q), dense)
    lists = [*([[0], [-1]] * 2), *([[1], [0, 1]] * 3), [], []]  # of the first five and the dead one
    lists += [[0, 1, 3, 5, 7], [-1], [0, 1, 3, 6, 8], [8], [0, 1, 2, 3], [3]]
    sparse = decoded(cache, steps, q, lists)
    assert np.array_equal(prefilled(cache, steps, q, lists), sparse)
    of_heads = sparse.reshape(-1, group, head_dim), dense.reshape(-1, group, head_dim)
    whole = [index for index, blocks in enumerate(lists) if blocks == [-1]]
    assert np.array_equal(*(x[whole] for x in of_heads))


def test_rows_are_the_same_alone_and_beside_others(device: Device) -> None:
    cache = Cache.of(device, [400, 300, 200])
    steps = [Step(0, 396, 2), Step(1, 250, 6, TREE), Step(2, 191, 1)]
    q = queries(9, 4, 64)
    together, first = decoded(cache, steps, q), 0
    for step in steps:
        rows = slice(first, first + step.n)
        alone = decoded(cache, [DEAD, step], np.concatenate([q[:1], q[rows]]))[1:]
        assert np.array_equal(alone, together[rows])
        first += step.n
    by_one = [decoded(cache, [Step(0, 396 + i, 1)], q[i : i + 1])[0] for i in range(2)]
    assert np.array_equal(np.stack(by_one), together[:2])


def test_long_contexts_have_longer_splits(device: Device) -> None:
    assert [attention.splits(blocks) for blocks in (1, 4, 5, 256, 257)] == [1, 1, 2, 64, 64]
    cache = Cache.of(device, [16500])  # 258 blocks: 33 splits of 8
    step = Step(0, 16499, 1)
    q = queries(1, 2, 64)
    found = decoded(cache, [step], q)
    check(cache, [step], q, found)
    assert np.array_equal(prefilled(cache, [step], q), found)


def test_tiles_are_within_a_block_of_positions() -> None:
    runs = [(0, 5, 20), (20, 0, 1), (21, 64, 8)]
    assert attention.tiles(runs, 8).tolist() == [[0, 3], [3, 8], [11, 8], [19, 1], [20, 1], [21, 8]]
    assert attention.tiles([(2, 7, 3)], 1).tolist() == [[2, 1], [3, 1], [4, 1]]
    assert attention.tiles([], 64).shape == (0, 2)
    heads = [attention.tile_heads(4 * group, 4, 128) for group in (1, 2, 3, 16, 33)]
    assert heads == [1, 2, 4, 16, 32]
    assert [attention.tile_rows(16, 4, head_dim) for head_dim in (64, 128)] == [16, 8]
