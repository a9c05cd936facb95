"""Tokens that the native executor draws itself: those of `forward` and `sample`, in rows of the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from edge.engine.speculative.tree import DraftTree
from edge.errors import ContextError, EdgeError, NativeError, TokenizerError
from edge.executors.native.executor import NativeExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import KVCache, SequenceStep, draws_tokens, run_step
from edge.executors.sampling import DrawOptions
from edge.executors.trace import Trace, TracedExecutor

CONTEXT, TOKENS = 48, 24
OPTIONS = [
    DrawOptions(temperature=0.0, seed=1),
    DrawOptions(temperature=1.2, top_k=40, top_p=0.9, min_p=0.01, seed=2),
    DrawOptions(
        temperature=0.9,
        typical_p=0.9,
        seed=2,
        choice=3,
        bias_tokens=np.array([5, 6], np.int32),
        bias_values=np.array([-np.inf, 2.0], np.float32),
    ),
]


@pytest.fixture
def executor(make_bundle, tiny_config) -> Iterator[NativeExecutor]:
    bundle = make_bundle(replace(tiny_config, max_position_embeddings=CONTEXT))
    opened = open_executor(bundle, RunOptions(context=CONTEXT, threads=2, max_batch=16))
    assert isinstance(opened, NativeExecutor)
    yield opened
    opened.close()


def begun(executor: NativeExecutor, which: int) -> KVCache:
    cache = executor.new_cache()
    run_step(executor, SequenceStep(cache, [3 + which, 9, 11 + which], logits="none"))
    return cache


def one_by_one(executor: NativeExecutor, which: int) -> tuple[KVCache, list[int]]:
    cache, tokens = begun(executor, which), [7 + which]
    for index in range(TOKENS):
        logits = run_step(executor, SequenceStep(cache, tokens[-1:])).logits
        assert logits is not None
        tokens.append(executor.sample(logits[0], OPTIONS[which], index=index).token)
    return cache, tokens[1:]


def rows(executor: NativeExecutor, cache: KVCache) -> list[bytes]:
    return [page.tobytes() for page in executor.cache_pages(cache)]


@pytest.mark.parametrize("together", [[0], [1], [2], [0, 1, 2], [1, 1, 2]])
def test_the_tokens_and_rows_are_those_of_forward_and_sample(executor, together):
    caches = [begun(executor, which) for which in together]
    steps = [
        executor.next_token(cache, OPTIONS[which]) for which, cache in zip(together, caches, strict=True)
    ]
    last, found = [7 + which for which in together], [[] for _ in together]
    for index in range(TOKENS):
        for step, token in zip(steps, last, strict=True):
            step.put(token, index)
        last = [token for (token,) in executor.decode(steps)]
        for tokens, token in zip(found, last, strict=True):
            tokens.append(token)
    for which, cache, tokens in zip(together, caches, found, strict=True):
        alone, wanted = one_by_one(executor, which)
        assert tokens == wanted
        assert rows(executor, cache) == rows(executor, alone)


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("right", [0, 1, 3])
@pytest.mark.parametrize("together", [[0], [2, 1]])
def test_tokens_along_guesses_are_those_of_one_after_another(executor, together, right, branches):
    """So many guesses of three are right; with branches a wrong one stands beside each, before it."""
    caches = [begun(executor, which) for which in together]
    alone = [one_by_one(executor, which) for which in together]
    steps = []
    for cache, (_, wanted), which in zip(caches, alone, together, strict=True):
        guesses = [token if at < right else token ^ 1 for at, token in enumerate(wanted[:3])]
        step = executor.next_token(cache, OPTIONS[which])
        step.put(7 + which, 0)
        if branches:
            nodes = [
                (each, 2 * at - 1, 1.0) for at, token in enumerate(guesses) for each in (token ^ 2, token)
            ]
            tree = DraftTree.of(nodes)
            step.guess(tree.tokens, cache.length + tree.positions(), tree.masks())
        else:
            step.guess(guesses)
        step.want(hidden=True)
        steps.append(step)
    found = executor.decode(steps)
    for cache, step, tokens, (_, wanted) in zip(caches, steps, found, alone, strict=True):
        assert tokens == wanted[: right + 1]
        assert list(step.right) == [(2 if branches else 1) * at for at in range(1, right + 1)]
        assert cache.length == 4 + right
    for cache, step, which, (reference, wanted) in zip(caches, steps, together, alone, strict=True):
        path = [7 + which, *wanted[:right]]
        executor.truncate(reference, 3)
        hidden = run_step(executor, SequenceStep(reference, path, hidden=True)).hidden
        assert hidden is not None and step.states is not None
        assert step.states[[0, *step.right]].tobytes() == hidden.tobytes()
        after = [
            run_step(executor, SequenceStep(each, wanted[right : right + 1])) for each in (cache, reference)
        ]
        assert after[0].logits.tobytes() == after[1].logits.tobytes()


def test_layers_are_those_that_are_wanted(executor):
    """Of one sequence in turn: two of them, two others, the hidden states, none."""
    cache, alone = begun(executor, 0), begun(executor, 0)
    step, tokens = executor.next_token(cache, OPTIONS[0]), one_by_one(executor, 0)[1]
    for index, layers in enumerate([(0, 1), (1, 0), (1,), ()]):
        token = tokens[index - 1] if index else 7
        step.put(token, index)
        step.want(hidden=not layers, layers=layers)
        assert executor.decode([step]) == [[tokens[index]]]
        found = run_step(executor, SequenceStep(alone, [token], hidden=True, layers=layers))
        wanted = np.concatenate(found.layers, axis=1) if layers else found.hidden
        assert step.states is not None and wanted is not None
        assert step.states.tobytes() == wanted.tobytes()
    step.put(tokens[3], 4)
    step.want(hidden=False)
    assert executor.decode([step]) == [[tokens[4]]] and step.states is None


def test_a_step_that_fails_fails_alone(executor):
    caches = [begun(executor, 0) for _ in range(4)]
    executor.repeat(caches[1], CONTEXT)
    forbidden = DrawOptions(
        bias_tokens=np.arange(executor.config.vocab_size, dtype=np.int32),
        bias_values=np.full(executor.config.vocab_size, -np.inf, np.float32),
    )
    steps = [executor.next_token(cache, OPTIONS[0]) for cache in caches[:3]]
    steps.append(executor.next_token(caches[3], forbidden))
    for step, token in zip(steps, (7, 7, executor.config.vocab_size, 7), strict=True):
        step.put(token, 0)
    tokens, full, unknown, none = executor.decode(steps)
    assert tokens == one_by_one(executor, 0)[1][:1]
    assert isinstance(full, ContextError) and isinstance(unknown, TokenizerError)
    assert isinstance(none, NativeError) and "forbids every token" in str(none)
    assert [cache.length for cache in caches[:3]] == [4, CONTEXT, 3]


@pytest.mark.parametrize(("count", "caches"), [(17, 17), (2, 1)])
def test_what_is_no_pass_runs_nothing(executor, count, caches):
    made = [begun(executor, 0) for _ in range(caches)]
    steps = [executor.next_token(made[n % caches], OPTIONS[0]) for n in range(count)]
    with pytest.raises(EdgeError, match=r"one step per cache|up to 16 tokens"):
        executor.decode(steps)
    assert {cache.length for cache in made} == {3}


def test_an_observer_that_raises_leaves_the_caches_as_they_were(executor):
    caches = [begun(executor, 0), begun(executor, 1)]
    steps = [executor.next_token(cache, OPTIONS[0]) for cache in caches]

    def observer(_: bytes) -> None:
        raise ValueError("enough")

    executor.observe(observer)
    with pytest.raises(ValueError, match="enough"):
        executor.decode(steps)
    assert [cache.length for cache in caches] == [3, 3]
    events: list[bytes] = []
    executor.observe(events.append)
    executor.decode(steps)
    assert events and [cache.length for cache in caches] == [4, 4]


def test_whoever_looks_at_logits_gets_them(executor, tmp_path):
    class Own(NativeExecutor):
        def forward(self, steps):
            return super().forward(steps)

    class Quiet(NativeExecutor):
        pass

    assert draws_tokens(executor) and draws_tokens(object.__new__(Quiet))
    assert not draws_tokens(object.__new__(Own))
    assert not draws_tokens(TracedExecutor(executor, Trace(tmp_path / "trace.json")))
    executor.observe(None)


def test_it_is_refused_after_the_end(executor):
    step = executor.next_token(begun(executor, 0), OPTIONS[0])
    executor.close()
    with pytest.raises(NativeError, match="closed"):
        executor.decode([step])
