"""One pass over several sequences: a step gives what it gives alone, and a failure touches no other cache."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import EdgeError, TokenizerError
from edge.executors.protocol import SequenceStep, StepResult
from edge.quant.scheme import QuantScheme
from tests.steps import TREE, forward, tree_masks


@pytest.fixture(params=["native", "torch"])
def executor(request, minicpm, make_bundle, open_native, open_reference):
    open_one = open_native if request.param == "native" else open_reference
    return open_one(make_bundle(minicpm(), QuantScheme("int4", 32)), context=64, max_batch=48)


def assert_equal(found: StepResult, wanted: StepResult) -> None:
    assert (found.logits is None) == (wanted.logits is None)
    assert (found.hidden is None) == (wanted.hidden is None)
    if wanted.logits is not None:
        np.testing.assert_array_equal(found.logits, wanted.logits)
    if wanted.hidden is not None:
        np.testing.assert_array_equal(found.hidden, wanted.hidden)
    assert len(found.layers) == len(wanted.layers)
    for ours, theirs in zip(found.layers, wanted.layers, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_pass_gives_what_each_step_gives_alone(executor, tokens_of):
    """A prompt, one token, and a tree, after different lengths and with different wishes."""
    config = executor.config
    depths = np.array([0, 1, 1, 2, 2, 3, 2, 3], np.int32)
    work = [
        (0, tokens_of(config, 40, 2), {"logits": "none", "layers": (1, 0)}),
        (17, tokens_of(config, 1, 3), {}),
        (9, tokens_of(config, len(TREE), 4), {"tree": tree_masks(TREE), "positions": 9 + depths}),
        (30, tokens_of(config, 5, 5), {"logits": "all", "hidden": True}),
    ]
    caches, wanted = [], []
    for past, tokens, wishes in work:
        pair = executor.new_cache(), executor.new_cache()
        for cache in pair if past else ():
            forward(executor, cache, tokens_of(config, past, 6), logits="none")
        caches.append(pair[0])
        wanted.append(forward(executor, pair[1], tokens, **wishes))
    steps = zip(caches, work, strict=True)
    found = executor.forward([SequenceStep(cache, tokens, **wishes) for cache, (_, tokens, wishes) in steps])
    assert len(found) == len(work)
    for result, alone in zip(found, wanted, strict=True):
        assert_equal(result, alone)
    assert [cache.length for cache in caches] == [past + len(tokens) for past, tokens, _ in work]


def test_a_step_that_fails_keeps_those_before_it(executor, tokens_of):
    caches = [executor.new_cache() for _ in range(3)]
    for cache in caches:
        forward(executor, cache, tokens_of(executor.config, 10))
    outside = executor.config.vocab_size
    with pytest.raises(TokenizerError, match=str(outside)):
        executor.forward(
            [
                SequenceStep(caches[0], [5, 6]),
                SequenceStep(caches[1], [7, outside]),
                SequenceStep(caches[2], [8]),
            ]
        )
    assert [cache.length for cache in caches] == [12, 10, 10]
    again = [forward(executor, cache, [9]) for cache in caches[1:]]
    assert_equal(*again)


def test_one_step_per_cache(executor):
    cache = executor.new_cache()
    with pytest.raises(EdgeError, match="one step per cache"):
        executor.forward([SequenceStep(cache, [5]), SequenceStep(cache, [6])])
    assert cache.length == 0


def test_a_pass_without_steps(executor):
    assert executor.forward([]) == []
