"""The benchmark of several answers at once, over a tiny model."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Iterator

import pytest

from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.runtime import Model
from scripts import bench_streams
from tests.passes import watch


@pytest.fixture
def model(make_bundle, tiny_config) -> Iterator[Model]:
    bundle = make_bundle(tiny_config(vocab_size=120, max_position_embeddings=4096), tokenizer=True)
    executor = open_executor(bundle, RunOptions(context=4096, threads=1, max_batch=64))
    with Model(bundle, executor, name="tiny") as opened:
        yield opened


def test_the_figures_of_a_run(model, monkeypatch):
    """Every count of answers goes through the executor together, and so do a prompt and two answers."""
    seen = set()

    def recorded(sizes, run):
        seen.add(tuple(sorted(min(size, 2) for size in sizes)))  # 2: a part of a prompt
        time.sleep(0.001)  # a real model's pass leaves the other threads as much time, and more
        return run()

    watch(monkeypatch, model.executor, recorded)
    found = bench_streams.measured(model, Namespace(repeats=2, tokens=40, prompt=1500))
    assert json.loads(json.dumps(found)) == found
    assert list(found["streams"]) == ["1", "2", "4", "8"]
    for each in found["streams"].values():
        assert each["tokens/s"] > 0 and each["pass ms"] > 0 and len(each["samples"]) == 2
    assert found["streams"]["1"]["of one"] == 1
    assert {(1,), (1, 1), (1,) * 4, (1,) * 8, (1, 1, 2)} <= seen
    assert 0 < found["prompt"]["p50 ms"] <= found["prompt"]["p99 ms"]


def test_the_share_that_a_prompt_is_left():
    """1000 tokens alone in 2 s, in 4 s beside 100 others that would have taken 1 s by themselves."""
    share = bench_streams.share_left(500.0, 250.0, [0.04] * 100, 100.0, 1000)
    assert share == pytest.approx(250 / (500 * 0.75))
