"""Traces: their format, the checksums' estimate of a distance, and finding the operator where two networks
part.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge.errors import EdgeError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import SequenceStep
from edge.executors.trace import Trace, TracedExecutor, checksum
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.measure.alignment import Stage, align
from tests.steps import forward

TOKENS = [3, 14, 15, 9, 26]


@pytest.fixture
def trace_of(tiny_config, array_checkpoint, tmp_path):
    """`trace_of(name, change=..., kv_type=...)`: the path of a trace of two calls over the tiny network."""

    def make(name, change=lambda weights: None, tokens=TOKENS, kv_type="float32"):
        checkpoint = array_checkpoint(tiny_config)
        change(checkpoint.weights)
        convert(checkpoint, tmp_path / name, quantize="f16")
        options = RunOptions(context=48, threads=1, activations="float32", kv_type=kv_type, max_batch=8)
        executor = open_executor(Bundle.open(tmp_path / name), options)
        path = tmp_path / f"{name}.json"
        traced = TracedExecutor(executor, Trace(path))
        cache = traced.new_cache()
        forward(traced, cache, tokens)
        forward(traced, cache, [7])
        traced.close()
        return path

    return make


def test_the_format_is_chromes(trace_of):
    events = json.loads(trace_of("a").read_text())["traceEvents"]
    assert all(
        event["ph"] == "X" and event["dur"] >= 0 and {"ts", "pid", "tid"} <= set(event) for event in events
    )
    calls = [event for event in events if event["name"] == "forward"]
    assert [(call["args"]["tokens"], call["args"]["past"]) for call in calls] == [(5, 0), (1, 5)]
    for call in calls:  # operators lie inside their call
        inside = [e for e in events if e["cat"] == "operator" and e["args"]["call"] == call["args"]["call"]]
        assert len(inside) > 20
        for event in inside:
            assert event["ts"] >= call["ts"] - 1
            assert event["ts"] + event["dur"] <= call["ts"] + call["dur"] + 1


def test_steps_of_a_pass_are_calls_of_their_own(tiny_executor, tmp_path):
    path = tmp_path / "trace.json"
    traced = TracedExecutor(tiny_executor, Trace(path))
    first, second = traced.new_cache(), traced.new_cache()
    found = traced.forward([SequenceStep(first, TOKENS), SequenceStep(second, [7])])
    traced.close()
    events = json.loads(path.read_text())["traceEvents"]
    calls = [event["args"] for event in events if event["name"] == "forward"]
    assert [(call["call"], call["tokens"], call["past"]) for call in calls] == [(1, 5, 0), (2, 1, 0)]
    assert [call["checksum"] for call in calls] == [checksum(result.logits) for result in found]
    assert {event["args"]["call"] for event in events if event["cat"] == "operator"} == {1, 2}


def test_a_network_agrees_with_itself(trace_of):
    found = align(trace_of("a"), trace_of("b"))
    assert found.first is None and found.worst.difference == 0 and found.stages > 40
    assert found.only_a == found.only_b == ()


@pytest.mark.parametrize(
    ("tensor", "operation", "layer"),
    [
        ("model.layers.1.self_attn.o_proj.weight", "o", 1),
        ("model.layers.0.mlp.up_proj.weight", "gate_up", 0),
        ("model.embed_tokens.weight", "embed", -1),
        ("lm_head.weight", "head", -1),
    ],
)
def test_the_first_operator_with_other_weights_is_found(trace_of, tensor, operation, layer):
    def change(weights):
        weights[tensor] = weights[tensor] * np.float32(1.1)

    found = align(trace_of("a"), trace_of("b", change))
    assert found.first is not None
    assert found.first.stage == Stage(1, operation, layer, 0)
    assert 0.01 < found.first.difference < 1


def test_rounding_is_below_the_tolerance(trace_of):
    """float16 keys and values beside float32 ones: a difference, but no error."""
    found = align(trace_of("a"), trace_of("b", kv_type="float16"))
    assert found.first is None and 0 < found.worst.difference < 5e-3


def test_shapes_that_differ_are_a_difference(trace_of):
    found = align(trace_of("a"), trace_of("b", tokens=TOKENS[:4]))
    assert found.first is not None and found.first.stage.operation == "embed"
    assert found.first.shape_a == (5, 40) and found.first.shape_b == (4, 40)


@pytest.mark.parametrize("shape", [(1, 300), (7, 77), (64, 1024)])
def test_sketches_estimate_distances(shape):
    rng = np.random.default_rng(0)
    a = rng.standard_normal(shape).astype(np.float32)
    b = a + 0.01 * rng.standard_normal(shape).astype(np.float32)
    sums = [checksum(array) for array in (a, b)]
    estimate = np.linalg.norm(np.subtract(sums[0]["sketch"], sums[1]["sketch"]))
    assert estimate == pytest.approx(np.linalg.norm(a - b), rel=0.5)
    assert sums[0]["norm"] == pytest.approx(np.linalg.norm(a)) and sums[0]["largest"] == np.abs(a).max()


def test_by_hand(tmp_path):
    """The first executor of a file counts; norms may differ where sketches happen to agree."""

    def written(name, *operators):
        events = [
            {
                **{"name": "attention", "ts": 0, "dur": 1, "tid": executor},
                "args": {
                    "call": 1,
                    "layer": 0,
                    "checksum": {"shape": [1, 4], "norm": norm, "sketch": sketch},
                },
            }
            for executor, norm, sketch in operators
        ]
        (tmp_path / name).write_text(json.dumps({"traceEvents": events}))
        return tmp_path / name

    plain = written("plain", (1, 5.0, [3.0, 4.0]))
    assert align(written("two", (2, 1.0, [0.0, 0.0]), (1, 5.0, [3.0, 4.0])), plain).worst.difference == 0
    assert align(plain, written("norm", (1, 8.0, [3.0, 4.0]))).worst.difference == 3 / 5
    assert align(plain, written("sketch", (1, 5.0, [0.0, 0.0]))).worst.difference == 1


def test_bad_files(tmp_path, trace_of):
    (tmp_path / "x.json").write_text('{"traceEvents": [{"tid": 1}]}')
    with pytest.raises(EdgeError, match=r"x\.json' is not a trace of this program"):
        align(tmp_path / "x.json", tmp_path / "x.json")
    with pytest.raises(EdgeError, match="No such file"):
        align(tmp_path / "absent", tmp_path / "absent")
    with pytest.raises(EdgeError, match="No such file"):
        Trace(tmp_path / "absent" / "trace.json")
    (tmp_path / "empty.json").write_text('{"traceEvents": []}')
    with pytest.raises(EdgeError, match="no stage in common"):
        align(trace_of("a"), tmp_path / "empty.json")


def test_a_trace_of_whole_calls_says_so(trace_of, tmp_path):
    """As of onnx and executorch, which compute a call without stopping."""
    whole = tmp_path / "whole.json"
    events = json.loads(trace_of("a").read_text())["traceEvents"]
    whole.write_text(json.dumps({"traceEvents": [event for event in events if event["name"] == "forward"]}))
    found = align(trace_of("b"), whole)
    assert (found.whole, found.stages) == (("B",), 2)
    assert align(whole, whole).whole == ("A", "B")


def written(path, *events):
    """A trace of (call, layer, name, end, checksum's norm and sketch) at `path`."""
    path.write_text(
        json.dumps(
            {
                "traceEvents": [
                    {
                        **{"name": name, "ts": end - 1, "dur": 1, "tid": 1},
                        "args": {
                            **{"call": call, "layer": layer},
                            "checksum": {"shape": [1, 4], "norm": norm, "sketch": sketch},
                        },
                    }
                    for call, layer, name, end, norm, sketch in events
                ]
            }
        )
    )
    return path


def test_what_is_within_the_tolerance(tmp_path):
    a = written(tmp_path / "a", (1, 0, "o", 1, 8.0, [8.0]))
    b = written(tmp_path / "b", (1, 0, "o", 1, 8.0, [10.0]))
    assert align(a, b, 0.25).first is None
    assert align(a, b, 0.2499).first == align(a, b).first == align(a, b).worst
    close = written(tmp_path / "close", (1, 0, "o", 1, 8.0, [8.0 + 8 * 0.004]))
    assert align(a, close).first is None


def test_the_first_difference_and_the_worst(tmp_path):
    """The first in the order of A's time, which is not that of the file; each name again by its number."""
    steps = [(2, 0, "o", 3, 1.0), (1, 1, "q", 9, 1.0), (1, 0, "q", 2, 1.0), (1, 0, "q", 5, 1.0)]
    a = written(tmp_path / "a", *((*step, [0.0]) for step in steps), (1, 0, "only", 1, 1.0, [0.0]))
    changed = [(*step, [value]) for step, value in zip(steps, (3.0, 9.0, 0.0, 2.0), strict=True)]
    b = written(tmp_path / "b", *changed, (1, 0, "new", 1, 1.0, [0.0]), (1, 0, "late", 1, 1.0, [0.0]))
    found = align(a, b)
    assert found.first.stage == Stage(1, "q", 0, 1) and found.first.difference == 2
    assert found.worst.stage == Stage(1, "q", 1, 0) and found.worst.difference == 9
    assert (found.stages, found.only_a, found.only_b, found.whole) == (4, ("only",), ("late", "new"), ())
    assert str(found.first.stage) == "q of layer 0 in call 1 (number 2)"
    assert str(Stage(3, "head", -1, 0)) == "head in call 3"


@pytest.mark.parametrize("sketch", [[float("nan")], [float("inf")], [1.0, 2.0]])
def test_what_has_no_distance_is_infinitely_far(tmp_path, sketch):
    a = written(tmp_path / "a", (1, 0, "o", 1, 1.0, [1.0]), (2, 0, "o", 1, 1.0, [1.0]))
    b = written(tmp_path / "b", (1, 0, "o", 1, 1.0, [1.0]), (2, 0, "o", 1, 1.0, sketch))
    found = align(a, b, 1e9)
    assert found.first == found.worst and found.worst.difference == float("inf")
    assert found.worst.stage.call == 2
