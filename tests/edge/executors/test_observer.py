"""What the native executor reports of its operators is true, and reporting it changes no result."""

from __future__ import annotations

import ctypes
import itertools
import time

import numpy as np
import pytest

from edge.errors import EdgeError, NativeError
from edge.executors.native import library as native
from edge.measure.profile.cost import NetworkCost
from edge.measure.profile.options import Case
from edge.measure.profile.run import work
from tests.steps import forward

TOKENS = [5, 9, 33, 2, 70]


def events_of(executor, cache, tokens, **options):
    """(events with a copy of their outputs, result) of one forward pass."""
    found = []

    def keep(raw):
        event = native.Event.from_buffer_copy(raw)
        floats = ctypes.cast(event.output, ctypes.POINTER(ctypes.c_float))
        rows = [[floats[r * event.stride + c] for c in range(event.columns)] for r in range(event.rows)]
        found.append((event, np.array(rows, np.float32)))

    executor.observe(keep)
    result = forward(executor, cache, tokens, **options)
    executor.observe(None)
    return found, result


def test_outputs_are_what_the_pass_computed(tiny_executor):
    events, result = events_of(tiny_executor, tiny_executor.new_cache(), TOKENS, layers=[0, 1])
    last_of_layer = {event.layer: output for event, output in events}
    head = events[-1]
    assert head[0].operation == b"head" and head[0].layer == -1
    np.testing.assert_array_equal(head[1], result.logits)
    for layer in (0, 1):
        np.testing.assert_array_equal(last_of_layer[layer], result.layers[layer])


def test_observing_changes_no_bit(tiny_executor):
    _, observed = events_of(tiny_executor, tiny_executor.new_cache(), TOKENS)
    plain = forward(tiny_executor, tiny_executor.new_cache(), TOKENS)
    np.testing.assert_array_equal(observed.logits, plain.logits)


def test_times_follow_each_other(tiny_executor):
    """On the clock of `time.monotonic`, inside the call, and no operator takes no time."""
    called = time.monotonic_ns()
    events, _ = events_of(tiny_executor, tiny_executor.new_cache(), TOKENS)
    assert called <= events[0][0].start_ns
    assert events[-1][0].start_ns + events[-1][0].nanoseconds <= time.monotonic_ns()
    for (before, _), (after, _) in itertools.pairwise(events):
        assert before.nanoseconds > 0
        assert before.start_ns + before.nanoseconds <= after.start_ns


@pytest.mark.parametrize(("test", "tokens"), [("decode", 1), ("prefill", 7)])
def test_bytes_and_operations_are_those_of_the_cost_model(tiny_executor, tiny_config, tmp_path, test, tokens):
    from edge.formats.bundle.reader import Bundle

    tensors = [
        (info.name, info.shape, info.scheme) for info in Bundle.open(tmp_path / "tiny").tensors.values()
    ]
    norms = sum(scheme.packed_bytes(1, shape[0]) for _, shape, scheme in tensors if len(shape) == 1)
    cost = NetworkCost.of(tiny_config, tensors, "float32", "float32")
    cache, depth = tiny_executor.new_cache(), 8
    forward(tiny_executor, cache, range(depth))
    events, _ = events_of(tiny_executor, cache, range(tokens))
    weights, rows, linear, attention = work(cost, Case(test, tokens, depth), tiny_executor.max_batch)
    matrices = [event for event, _ in events if event.kernel]
    attentions = [event for event, _ in events if event.operation == b"attention"]
    assert sum(event.operations for event in matrices) == linear
    assert sum(event.operations for event in attentions) == attention
    assert sum(event.bytes for event in matrices) == weights - norms
    assert sum(event.bytes for event in attentions) == rows


def test_repeated_rows_are_copies(tiny_executor):
    """Rows 5..9 of a repeated cache, moved to the front, are the five original ones."""
    wanted = tiny_executor.new_cache()
    forward(tiny_executor, wanted, TOKENS)
    repeated = tiny_executor.new_cache()
    forward(tiny_executor, repeated, TOKENS)
    tiny_executor.repeat(repeated, 13)
    assert repeated.length == 13
    tiny_executor.truncate(repeated, 10)
    tiny_executor.keep(repeated, 0, range(5, 10))
    position = np.array([5], np.int32)
    np.testing.assert_array_equal(
        forward(tiny_executor, repeated, [7], positions=position).logits,
        forward(tiny_executor, wanted, [7], positions=position).logits,
    )


def test_an_observer_that_calls_the_library_is_refused(tiny_executor):
    """On the C side: what Python's executor does itself, with its lock, would never reach it."""
    library, cache, other = native.library(), tiny_executor.new_cache(), tiny_executor.new_cache()
    forward(tiny_executor, other, TOKENS)
    tokens = np.array(TOKENS, np.int32)
    step = native.Step(
        size=ctypes.sizeof(native.Step), n=len(tokens), cache=other.handle, tokens=tokens.ctypes.data
    )
    memory, size = ctypes.c_void_p(), ctypes.c_uint64()
    calls = {
        "edge_forward": lambda: library.edge_forward(tiny_executor.handle, ctypes.byref(step), 1, None),
        "edge_model_observe": lambda: library.edge_model_observe(
            tiny_executor.handle, native.Observer(), None
        ),
        "edge_cache_truncate": lambda: library.edge_cache_truncate(other.handle, 2),
        "edge_cache_keep": lambda: library.edge_cache_keep(other.handle, 2, None, 0),
        "edge_cache_repeat": lambda: library.edge_cache_repeat(other.handle, 7),
        "edge_cache_fork": lambda: library.edge_cache_fork(other.handle, 2, cache.handle),
        "edge_cache_page": lambda: library.edge_cache_page(
            other.handle, 0, ctypes.byref(memory), ctypes.byref(size)
        ),
        "edge_cache_restore": lambda: library.edge_cache_restore(other.handle, 0, tokens.ctypes.data, 0),
    }
    refused = set()

    def observer(_):
        for name, call in calls.items():
            with pytest.raises(NativeError, match=f"An observer called {name}, which has to wait"):
                native.check(call())
            refused.add(name)

    tiny_executor.observe(observer)
    observed = forward(tiny_executor, cache, TOKENS)
    tiny_executor.observe(None)
    assert refused == set(calls) and other.length == len(TOKENS)
    native.check(calls["edge_cache_truncate"]())  # afterwards nothing is refused any more
    plain = forward(tiny_executor, tiny_executor.new_cache(), TOKENS)
    np.testing.assert_array_equal(observed.logits, plain.logits)


@pytest.mark.parametrize("length", [0, 3, 49])
def test_a_cache_repeats_within_its_bounds_only(tiny_executor, length):
    cache = tiny_executor.new_cache()
    with pytest.raises(NativeError, match="can't be repeated"):
        tiny_executor.repeat(cache, 10)  # it is empty
    forward(tiny_executor, cache, TOKENS)
    with pytest.raises(NativeError, match=f"cache of 5 rows can't be repeated up to {length} rows"):
        tiny_executor.repeat(cache, length)


@pytest.mark.parametrize(
    "call",
    [
        lambda executor, cache: forward(executor, executor.new_cache(), TOKENS),
        lambda executor, cache: executor.truncate(cache, 0),
        lambda executor, cache: executor.observe(None),
        lambda executor, cache: executor.close(),
    ],
)
def test_an_observer_that_calls_back_is_told_so(tiny_executor, call):
    """It would wait for itself; what it caused is raised by the pass, which then never was."""
    cache, seen = tiny_executor.new_cache(), []
    forward(tiny_executor, cache, TOKENS)

    def observer(raw: bytes) -> None:
        seen.append(raw)
        call(tiny_executor, cache)

    tiny_executor.observe(observer)
    with pytest.raises(EdgeError, match="an observer must not call what it observes"):
        forward(tiny_executor, cache, [7])
    tiny_executor.observe(None)
    assert len(seen) == 1 and cache.length == len(TOKENS)
    fresh = tiny_executor.new_cache()
    forward(tiny_executor, fresh, TOKENS)
    np.testing.assert_array_equal(
        forward(tiny_executor, cache, [7]).logits, forward(tiny_executor, fresh, [7]).logits
    )


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt()])
def test_what_an_observer_raises_is_not_lost(tiny_executor, error):
    def observer(raw: bytes) -> None:
        raise error

    tiny_executor.observe(observer)
    cache = tiny_executor.new_cache()
    with pytest.raises(type(error)):
        forward(tiny_executor, cache, TOKENS)
    assert cache.length == 0
    tiny_executor.observe(None)
    forward(tiny_executor, cache, TOKENS)
