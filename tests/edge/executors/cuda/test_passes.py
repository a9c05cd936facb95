"""What a pass says of its rows."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import ContextError, EdgeError, NativeError
from edge.executors.cuda.cache import CudaCache, PagePool
from edge.executors.cuda.passes import CheckedStep, PassRows, causal_bits, checked
from edge.executors.protocol import SequenceStep
from edge.executors.soft import SoftRows
from tests.configs import one_layer
from tests.steps import TREE, paths, tree_masks

POOL, CONFIG = PagePool(8), one_layer(70)


def step(length: int, tokens: int | list[int], **fields: object) -> CheckedStep:
    """A checked step on a cache of so many rows."""
    cache = CudaCache(POOL, 1024)
    cache.length = length
    given = SequenceStep(cache, tokens if isinstance(tokens, list) else range(tokens), **fields)
    return checked(given, POOL, CONFIG, context=1024, max_batch=64)


def test_rows_of_trees_come_first_and_know_their_paths():
    depths = np.array([len(path) - 1 for path in paths(TREE)])
    steps = [
        step(5, 3),
        step(7, len(TREE), tree=tree_masks(TREE), positions=7 + depths),
        step(0, 2, logits="all"),
    ]
    rows = PassRows.of(steps)
    assert rows.first == (8, 0, 11) and rows.rows == 13 and rows.trees == 8
    assert rows.caches == (steps[1].cache, steps[0].cache, steps[2].cache)
    assert rows.sequences.tolist() == [0] * 8 + [1] * 3 + [2] * 2
    assert rows.slots.tolist() == [*range(7, 15), 5, 6, 7, 0, 1]
    assert rows.path.tolist() == [*(7 + depths), 5, 6, 7, 0, 1] == rows.positions.tolist()
    assert rows.before.tolist() == [7] * 8 + [5] * 3 + [0] * 2
    assert rows.is_tree.tolist() == [1] * 8 + [0] * 5
    for row, path in enumerate(paths(TREE)):
        assert rows.ancestors[row, : len(path)].tolist() == path
    assert rows.runs(8) == ([(8, 5, 3), (11, 0, 2)], [])
    assert rows.runs(8, 6) == ([(8, 5, 1), (11, 0, 2)], [(9, 6, 2)])


def test_a_tree_of_one_path_is_causal():
    assert step(3, 64, tree=causal_bits(64)).tree is None
    assert step(3, 2, tree=np.array([1, 2], np.uint64)).tree is not None


@pytest.mark.parametrize(
    ("tokens", "fields", "error", "sentence"),
    [
        ([70], {}, EdgeError, "Token id 70 is outside the vocabulary of 70"),
        (65, {}, EdgeError, "A batch has 1 to 64 tokens, got 65"),
        (2, {"layers": [1]}, EdgeError, "there is no layer 1"),
        (2, {"tree": np.array([1, 1], np.uint64)}, EdgeError, "Token 1 of the tree must see itself"),
        (2, {"positions": np.array([5, 1024])}, ContextError, "outside the context of 1024"),
        (2, {"soft": SoftRows(None, np.zeros(1, np.int32))}, EdgeError, "cuda executor takes no soft rows"),
        (2, {"logits": "some"}, EdgeError, "Unknown choice of logits 'some'"),
    ],
)
def test_a_step_that_can_not_run_is_a_sentence(tokens, fields, error, sentence):
    with pytest.raises(error, match=sentence):
        step(4, tokens, **fields)


def test_a_cache_of_another_executor_is_refused():
    with pytest.raises(NativeError, match="This cache belongs to another executor"):
        checked(SequenceStep(CudaCache(PagePool(1), 9), [1]), POOL, CONFIG, context=64, max_batch=4)
