"""One pass over several sequences: a step gives what it gives alone, and one that fails fails alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.errors import ContextError, EdgeError, TokenizerError
from edge.executors.native.library import cpu_tiers
from edge.executors.protocol import SequenceStep, StepResult
from edge.quant.scheme import QuantScheme
from tests.steps import TREE, forward, memory_of, paths, tree_masks


@pytest.fixture(params=["native", "torch"])
def executor(request, minicpm, make_bundle, open_native, open_reference):
    open_one = open_native if request.param == "native" else open_reference
    return open_one(make_bundle(minicpm(), QuantScheme("int4", 32)), context=64, max_batch=64)


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


def test_a_step_that_fails_fails_alone(executor, tokens_of):
    """The first, one in the middle and the last of a pass, each for a reason of its own."""
    config, lengths = executor.config, (10, 10, 62, 10, 10)
    caches, alone = ([executor.new_cache() for _ in lengths] for _ in range(2))
    for cache, length in zip([*caches, *alone], [*lengths, *lengths], strict=True):
        for start in range(0, length, 31):
            forward(executor, cache, tokens_of(config, length)[start : start + 31])
    outside = config.vocab_size
    tokens = ([7, outside], [5, 6], [1, 2, 3], [8], [4])
    wishes = ({"logits": "all"}, {"logits": "all"}, {"logits": "none"}, {"hidden": True}, {"layers": [9]})
    steps = [
        SequenceStep(cache, some, **wanted)
        for cache, some, wanted in zip(caches, tokens, wishes, strict=True)
    ]
    results = executor.forward(steps)
    kinds = TokenizerError, None, ContextError, None, EdgeError
    for result, kind in zip(results, kinds, strict=True):
        assert result.error is None if kind is None else isinstance(result.error, kind)
        assert result.error is None or result.logits is None
    assert str(outside) in str(results[0].error) and "layer 9" in str(results[4].error)
    assert [cache.length for cache in caches] == [10, 12, 62, 11, 10]
    for index in (1, 3):
        assert_equal(results[index], forward(executor, alone[index], tokens[index], **wishes[index]))
    for index in (0, 2, 4):
        assert_equal(*(forward(executor, each[index], [9]) for each in (caches, alone)))


def test_one_step_per_cache(executor):
    cache = executor.new_cache()
    with pytest.raises(EdgeError, match="one step per cache"):
        executor.forward([SequenceStep(cache, [5]), SequenceStep(cache, [6])])
    assert cache.length == 0


def test_a_pass_without_steps(executor):
    assert executor.forward([]) == []


MODES = [
    ("float32", "float32"),
    ("float32", "float16"),
    ("int8", "int16"),
    ("int8", "float16"),
    ("int8", "int8"),
    ("int16", "int4"),
]
SPARSE = SparseConfig(dense_len=128, window_size=128, init_blocks=1, topk=2)


@pytest.mark.parametrize("tier", cpu_tiers())
@pytest.mark.parametrize("attention", ["dense", "sparse"])
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_random_passes_give_the_bits_of_lone_steps(
    minicpm, make_bundle, open_native, tokens_of, mode, attention: str, tier: str
):
    """Prompts, single tokens and trees of six sequences in any mixture, on every tier, twice side by side."""
    config = minicpm(num_attention_heads=16, sparse=SPARSE if attention == "sparse" else None)
    bundle = make_bundle(config, QuantScheme("int4", 32))
    activations, kv_type = mode
    executor = open_native(
        bundle, activations=activations, kv_type=kv_type, context=640, max_batch=300, tier=tier
    )
    random = np.random.default_rng(len(tier) + len(attention))
    pairs = [(executor.new_cache(), executor.new_cache()) for _ in range(6)]
    for _ in range(14):
        chosen = random.permutation(6)[: random.integers(2, 7)]
        steps, rows = [], executor.max_batch
        for index in chosen:
            past = pairs[index][0].length
            most = min(rows - len(chosen), executor.context - past, int(random.choice([1, 1, 9, 150])))
            if most < 1:
                continue
            n = int(random.integers(1, most + 1))
            wishes: dict[str, Any] = {"logits": str(random.choice(["none", "last", "all"]))}
            if 1 < n <= 40 and random.random() < 0.5:
                parents = [-1, *(int(random.integers(node)) for node in range(1, n))]
                depths = np.array([len(path) - 1 for path in paths(parents)], np.int32)
                wishes |= {"tree": tree_masks(parents), "positions": past + depths}
            steps.append((int(index), random.integers(0, config.vocab_size, n).astype(np.int32), wishes))
            rows -= n
        found = executor.forward([SequenceStep(pairs[i][0], tokens, **wishes) for i, tokens, wishes in steps])
        for result, (index, tokens, wishes) in zip(found, steps, strict=True):
            assert result.error is None
            assert_equal(result, forward(executor, pairs[index][1], tokens, **wishes))
            if "tree" in wishes:  # a path of it is accepted
                past = pairs[index][0].length - len(tokens)
                bits = int(wishes["tree"][int(random.integers(len(tokens)))])
                kept = [past + node for node in range(len(tokens)) if bits >> node & 1]
                for cache in pairs[index]:
                    executor.keep(cache, past, kept)
    for cache, alone in pairs:
        np.testing.assert_array_equal(memory_of(executor, cache), memory_of(executor, alone))


def test_more_tokens_than_a_pass_takes(executor, tokens_of):
    if not executor.capabilities.batch_invariant:
        pytest.skip("it runs one step after another")
    caches = [executor.new_cache() for _ in range(2)]
    with pytest.raises(EdgeError, match="up to 64 tokens, got 65"):
        executor.forward(
            [
                SequenceStep(cache, tokens_of(executor.config, n))
                for cache, n in zip(caches, (40, 25), strict=True)
            ]
        )
    assert [cache.length for cache in caches] == [0, 0]
