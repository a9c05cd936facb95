"""What the native executor reports of its operators is true, and reporting it changes no result."""

from __future__ import annotations

import ctypes
import itertools
import time

import numpy as np
import pytest

from edge.errors import NativeError
from edge.executors.native import library as native
from edge.measure.profile.cost import NetworkCost
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
    weights, rows, linear, attention = work(cost, (test, tokens, depth), tiny_executor.max_batch)
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


@pytest.mark.parametrize("length", [0, 3, 49])
def test_a_cache_repeats_within_its_bounds_only(tiny_executor, length):
    cache = tiny_executor.new_cache()
    with pytest.raises(NativeError, match="can't be repeated"):
        tiny_executor.repeat(cache, 10)  # it is empty
    forward(tiny_executor, cache, TOKENS)
    with pytest.raises(NativeError, match=f"cache of 5 rows can't be repeated up to {length} rows"):
        tiny_executor.repeat(cache, length)
