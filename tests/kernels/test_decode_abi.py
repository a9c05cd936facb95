"""The C border of edge_decode, given what Python would never give it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge.checkpoints.synthetic_draft import draft_shape
from edge.errors import NativeError
from edge.executors.drafts import DraftPlan, RowsMemory
from edge.executors.native import library as native
from edge.executors.native.executor import NativeExecutor
from edge.executors.native.next_token import NativeNextToken
from edge.executors.native.pool import ThreadPool
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.sampling import DrawOptions
from tests.random_draft import write_draft


@pytest.fixture(scope="module")
def opened(minicpm, make_bundle, tmp_path_factory) -> Iterator[tuple[NativeExecutor, Any, Any]]:
    """An executor, a draft of its model, and one of another model."""
    bundle = make_bundle(minicpm(max_position_embeddings=64))
    files = write_draft(tmp_path_factory.mktemp("abi") / "draft", bundle, draft_shape(bundle.config))
    executors = [open_executor(bundle, RunOptions(threads=2, max_batch=16)) for _ in range(2)]
    assert isinstance(executors[0], NativeExecutor)
    yield executors[0], executors[0].open_draft(files), executors[1].open_draft(files)
    for executor in executors:
        executor.close()


class Call:
    """One step with two guesses and a search behind it, as libedge takes them."""

    def __init__(self, executor: NativeExecutor, draft: Any) -> None:
        self.executor, self.draft, self.cache = executor, draft, draft.new_cache()
        self.step = executor.next_token(executor.new_cache(), DrawOptions(temperature=0.0))
        assert isinstance(self.step, NativeNextToken)
        self.step.put(5, 0)
        self.step.guess([7, 9])
        self.step.want(hidden=True)
        self.tokens = np.zeros(3, np.int32)
        self.hidden = np.zeros((3, executor.config.hidden_size), np.float32)
        memory = RowsMemory(self.tokens.ctypes.data, self.hidden.ctypes.data, (self.tokens, self.hidden))
        self.search = draft.ahead(self.cache)
        self.search.behind(self.step, 0, memory, DraftPlan(1, 4))
        self.logits = np.zeros((3, executor.config.vocab_size), np.float32)

    def run(self, pool: ctypes.c_void_p | None = None, **changes: Any) -> None:
        arguments = {
            "model": self.executor.handle,
            "steps": self.step.records,
            "decodings": ctypes.addressof(self.step.decodings),
            "count": 1,
            "logits": self.logits.ctypes.data,
            "pool": pool,
        }
        native.check(native.library().edge_decode(*{**arguments, **changes}.values()))
        native.library().edge_pool_join(pool)


@pytest.mark.parametrize("aside", [False, True])
def test_it_draws_and_searches(opened, aside: bool):
    executor, draft, _ = opened
    call = Call(executor, draft)
    call.run(executor._pool.handle if aside else None)
    drawn = call.step.drawn
    tokens = drawn.tokens[: drawn.count]
    assert tokens[0] == np.argmax(call.logits[0])
    assert call.tokens[: drawn.count].tolist() == tokens
    assert call.search.rows == drawn.count == call.cache.length
    assert call.hidden[0].tobytes() == call.step.states[0].tobytes()
    tried = call.search.tried()
    assert tried is not None and len(tried.tokens) == 4


@pytest.mark.parametrize("argument", ["model", "steps", "decodings"])
def test_what_is_missing_is_refused(opened, argument: str):
    with pytest.raises(NativeError, match="an argument is missing"):
        Call(*opened[:2]).run(**{argument: None})


def test_a_count_and_a_pool_are_checked(opened):
    call, other = Call(*opened[:2]), ThreadPool(2)
    with pytest.raises(NativeError, match="an argument is missing"):
        call.run(count=0)
    with pytest.raises(NativeError, match="the pool is not the model's"):
        call.run(pool=other.handle)
    assert call.step.cache.length == call.cache.length == 0


def of(where: str, **values: Any) -> Callable[[Call], None]:
    """Sets fields of the call's decoding, step, draw or draft step."""

    def change(call: Call) -> None:
        record = {
            "decoding": call.step.decoding,
            "step": call.step.record,
            "draw": call.step.draw,
            "draft_step": call.search._places.step,
        }[where]
        for name, value in values.items():
            setattr(record, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (of("decoding", size=8), "edge_decoding has another size here"),
        *((of("decoding", **{name: None}), "is missing") for name in ("sampling", "draw", "drawn")),
        *((of("decoding", **{name: None}), "argument of the draft is missing") for name in ("draft_step",)),
        *((of("decoding", **{f"draft_{name}": None}), "of the draft") for name in ("tokens", "hidden")),
        (of("draft_step", cache=None), "argument of the draft is missing"),
        (of("draft_step", size=8), "argument of the draft is missing"),
        (of("step", hidden=None), "lacks the hidden states"),
        (of("step", layer_outputs=64, layer_count=2), "lacks the hidden states"),
        (of("step", tokens=None), "is missing"),
        (of("step", n=0), "1 to 64 tokens that all have logits"),
        (of("step", n=65, logits_count=65), "1 to 64 tokens that all have logits"),
        (of("step", logits_count=1), "1 to 64 tokens that all have logits"),
        (of("step", soft_count=1), "1 to 64 tokens that all have logits"),
        (of("draw", size=8), "not of this vocabulary or version"),
        (of("draw", vocab_size=9), "not of this vocabulary or version"),
    ],
)
def test_what_is_no_step_to_decode_is_refused(opened, change: Callable[[Call], None], sentence: str):
    """And nothing is run."""
    call = Call(*opened[:2])
    change(call)
    with pytest.raises(NativeError, match=sentence):
        call.run()
    assert call.step.cache.length == call.cache.length == 0


def test_a_draft_of_another_model_is_refused(opened):
    executor, _, other = opened
    with pytest.raises(NativeError, match="the draft is of another model"):
        Call(executor, other).run()


@pytest.mark.parametrize("aside", [False, True])
def test_what_a_draft_cant_do_leaves_the_tokens(opened, aside: bool):
    """Its rows lie beyond the context: the search says that it was not made."""
    executor, draft, _ = opened
    whole, call = Call(executor, draft), Call(executor, draft)
    whole.run()
    call.search._places.step.position = 64
    call.run(executor._pool.handle if aside else None)
    assert call.step.drawn.tokens[:1] == whole.step.drawn.tokens[:1]
    assert call.search.tried() is None and (call.cache.length, whole.cache.length > 0) == (0, True)
