"""The C border of soft prompts, given what Python would never give it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edge.errors import NativeError
from edge.executors.native import library as native
from edge.executors.native.cache import NativeCache
from edge.executors.native.executor import NativeExecutor
from edge.executors.native.soft import SoftShape, soft_library
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from tests.soft import soft_weights

COUNT = 2


@pytest.fixture(scope="module")
def executor(minicpm, make_bundle) -> Iterator[NativeExecutor]:
    opened = open_executor(make_bundle(minicpm(max_position_embeddings=300)), RunOptions(threads=2))
    yield opened
    opened.close()


class Arguments:
    """Of edge_soft_create, as they should be."""

    def __init__(self, executor: NativeExecutor) -> None:
        weights = soft_weights(executor.config, COUNT)
        self.arrays = [np.ascontiguousarray(each) for each in weights.tensors.values()]
        self.shape = SoftShape(
            ctypes.sizeof(SoftShape), COUNT, 5, *(each.ctypes.data for each in self.arrays)
        )
        self.model: Any = executor.handle

    def create(self) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        native.check(
            soft_library().edge_soft_create(self.model, ctypes.byref(self.shape), ctypes.byref(handle))
        )
        return handle


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("size", 8, "another size"),
        ("embeddings", 0, "1 to 64 embeddings and 1 to 256 rows, got 0 and 5"),
        ("embeddings", 65, "got 65 and 5"),
        ("prefix", 0, "got 2 and 0"),
        ("prefix", 257, "got 2 and 257"),
        ("embedding", None, "an argument is missing"),
        ("keys", None, "an argument is missing"),
        ("values", None, "an argument is missing"),
    ],
)
def test_wrong_sizes(executor, field, value, says):
    arguments = Arguments(executor)
    setattr(arguments.shape, field, value)
    with pytest.raises(NativeError, match=says):
        arguments.create()


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -2e6])
def test_numbers_that_could_spoil_a_pass(executor, which, value):
    arguments = Arguments(executor)
    arguments.arrays[which].flat[-1] = value
    with pytest.raises(NativeError, match="not finite, or larger than"):
        arguments.create()


def test_no_model(executor):
    arguments = Arguments(executor)
    arguments.model = None
    with pytest.raises(NativeError, match="an argument is missing"):
        arguments.create()
    soft_library().edge_soft_destroy(None)


@pytest.mark.parametrize(
    ("tokens", "count", "says"),
    [
        ([1, 2, 0], -1, "need a soft prompt, and a token before them"),
        ([0, 1], 2, "need a soft prompt, and a token before them"),
        ([1, 0, 2], 2, "has 2 embeddings: there is no 2"),
        ([1, 0, -1], 2, "has 2 embeddings: there is no -1"),
        ([1 << 20, 0, 1], 2, "Token id 1048576 at place 0 is outside the vocabulary"),
        ([1, 0, 1], 2, None),
    ],
)
def test_steps(executor, tokens, count, says):
    handle = Arguments(executor).create()
    status, error, length = run(executor, tokens, handle, count)
    soft_library().edge_soft_destroy(handle)
    assert (status == 0) == (says is None)
    assert says is None or says in error
    assert length == (len(tokens) - count if says is None else 0)


def test_no_prompt_and_one_of_another_model(executor, minicpm, make_bundle):
    assert "need a soft prompt" in run(executor, [1, 0], None, 1)[1]
    other = open_executor(make_bundle(minicpm(num_hidden_layers=3)), RunOptions(threads=1))
    handle = Arguments(other).create()
    other.close()  # a prompt may outlive its model
    assert "belongs to a model of another shape" in run(executor, [1, 0], handle, 1)[1]
    soft_library().edge_soft_destroy(handle)


def run(
    executor: NativeExecutor, tokens: list[int], handle: ctypes.c_void_p | None, count: int
) -> tuple[int, str, int]:
    """Status and sentence of a step, and the rows that its cache has then."""
    cache: NativeCache = executor.new_cache()
    ids = np.array(tokens, np.int32)
    logits = np.empty((len(ids), executor.config.vocab_size), np.float32)
    step = native.Step(
        size=ctypes.sizeof(native.Step),
        n=len(ids),
        cache=cache.handle,
        tokens=ids.ctypes.data,
        logits_count=len(ids),
        soft=None if handle is None else handle.value,
        soft_count=count,
    )
    records = (native.Step * 1)(step)
    status = native.library().edge_forward(executor.handle, records, 1, logits.ctypes.data)
    return int(status), records[0].error.decode(), cache.length
