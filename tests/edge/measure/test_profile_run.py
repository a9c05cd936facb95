"""Real runs of the profiler: over a tiny network in its own processes, and the cost model over a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge.errors import EdgeError
from edge.executors.options import RunOptions
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.measure.profile import Profile, ProfileOptions, profile
from edge.measure.profile.cost import NetworkCost, Roofline
from edge.measure.profile.limits import variation_remarks
from edge.measure.profile.measure import Bench, Measured
from edge.measure.profile.run import _check_memory, _Configuration, _row
from edge.measure.profile.schema import ProfileError
from edge.measure.profile.worker import Setup, Worker

OPTIONS = ProfileOptions(threads=(1, 2), prefill=(33,), generate=5, depth=(0, 100), repeat=2)


@pytest.fixture
def tiny_bundle(tiny_config, array_checkpoint, tmp_path) -> Path:
    convert(array_checkpoint(tiny_config), tmp_path / "tiny", quantize="int4")
    return tmp_path / "tiny"


@pytest.fixture
def setup(tiny_bundle) -> Setup:
    return Setup(str(tiny_bundle), asdict(RunOptions(context=64, threads=1)), "prefill")


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """One process per CPU that does nothing but compute."""
    code = "while True: pass"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(os.cpu_count() or 1)]
    yield
    for other in others:
        other.kill()
        other.wait()


def test_a_run_measures_everything_that_it_was_asked_for(tiny_bundle):
    reports = []
    found = profile(tiny_bundle, OPTIONS, progress=lambda done, total, what: reports.append((done, total)))
    assert Profile.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert reports == [(i, 16) for i in range(16)]  # 2 configurations of 4 tests, twice
    assert [limits.threads for limits in found.machine.limits] == [1, 2]
    for limits in found.machine.limits:
        for name in ("read_bandwidth_gb_s", "int8_tops", "float_tflops"):
            samples = getattr(limits.samples, name)  # before each of 4 tests, twice, and at the end
            assert len(samples) == 9 and getattr(limits, name) == max(samples) and min(samples) > 0
    assert found.machine.noisy or not variation_remarks(found.machine.limits)
    assert set(variation_remarks(found.machine.limits)) <= set(found.machine.remarks)
    assert found.machine.read_bandwidth_gb_s == found.machine.limits[1].read_bandwidth_gb_s > 0
    assert found.machine.int8_tops > 0 and found.machine.float_tflops > 0
    assert len({row.key for row in found.results}) == len(found.results) == 8
    assert {(row.test, row.tokens, row.depth) for row in found.results} == set(OPTIONS.tests)
    for row in found.results:
        speed = row.tokens_per_second
        assert len(row.samples) == 2 and speed.median == pytest.approx(np.median(row.samples))
        assert speed.min == min(row.samples) and speed.max == max(row.samples)
        assert speed.p50 >= speed.p90 >= speed.p99 > 0
        assert (row.quantize, row.activations) == ("int4-g32", "int8")
        assert row.peak_memory_bytes > row.memory.weights + row.memory.kv_cache > 0
        assert row.load_seconds > 0 and row.bandwidth_share > 0 and row.compute_share > 0
        if row.test == "prefill":
            assert 33 / speed.max <= row.ttft_seconds <= 33 / speed.min
            assert row.latency_percentiles == ()
        else:
            assert row.ttft_seconds is None and len(row.latency_percentiles) == 101
            assert list(row.latency_percentiles) == sorted(row.latency_percentiles)
    deep = next(row for row in found.results if row.test == "decode" and row.depth == 100)
    assert deep.kv_bytes_per_token == 103 * 2 * 2 * 2 * (
        16 * 2 + 4
    )  # 101 to 105 positions; 2 layers, 2 heads of 16


def test_operators_add_up(tiny_bundle):
    options = replace(OPTIONS, threads=(1,), operators=True, fill="synthetic", repeat=1)
    for row in profile(tiny_bundle, options).results:
        assert {entry.layer for entry in row.operators} == {-1, 0, 1}
        assert row.fill == "synthetic"
        total = sum(entry.operations for entry in row.operators)
        if row.test == "prefill":
            assert total == pytest.approx(row.operations_per_token * row.tokens)
        else:  # the operators are those of the first token at this depth, the row's of the middle one
            attention = 2 * 2 * 4 * 16
            assert total == row.operations_per_token - attention * 2
        assert all(entry.seconds > 0 and entry.limit_share >= 0 for entry in row.operators)
        assert {entry.kernel for entry in row.operators} == {"", "int8 dots, int4 weights"}


def test_an_executor_of_another_package_is_measured_beside(tiny_bundle):
    """The reference in PyTorch: float32 throughout, and so much slower that no noise hides it."""
    pytest.importorskip("torch")
    options = replace(OPTIONS, executor=("native", "torch"), threads=(1,), depth=(0,), prefill=(), repeat=1)
    native, reference = profile(tiny_bundle, options).results
    assert (native.executor, reference.executor) == ("native", "torch")
    assert (reference.kv_type, reference.activations, reference.threads) == ("float32", "float32", 1)
    assert reference.tier.startswith("torch ")
    assert reference.weight_bytes_per_token > 4 * native.weight_bytes_per_token
    assert reference.tokens_per_second.median < native.tokens_per_second.median


def test_synthetic_and_honest_caches_have_the_same_length(tiny_executor):
    for fill in ("prefill", "synthetic"):
        bench = Bench(tiny_executor, fill)
        bench.measure("decode", 3, 20)
        assert bench._cache(20).length == 20


def test_a_busy_machine_marks_the_run(tiny_bundle, busy_machine):
    options = replace(OPTIONS, threads=(1,), depth=(0,), repeat=3)
    machine = profile(tiny_bundle, options).machine
    assert machine.noisy and machine.other_cpu_share is not None and machine.other_cpu_share > 0.1
    assert any("other processes used" in remark for remark in machine.remarks)


def test_a_context_beyond_the_model_is_refused(tiny_bundle):
    with pytest.raises(EdgeError, match="context of 605 tokens is beyond the 512"):
        profile(tiny_bundle, replace(OPTIONS, depth=(600,), prefill=(0,)))


def test_more_memory_than_there_is_is_refused(tiny_bundle, monkeypatch):
    monkeypatch.setattr("edge.measure.profile.run.available_memory", lambda: 1 << 16)
    with pytest.raises(ProfileError, match=r"2 configurations need .* measure fewer"):
        profile(tiny_bundle, OPTIONS)


def test_the_memory_of_a_run_to_the_byte(tiny_bundle, monkeypatch):
    """Weights, a cache at every depth once, and the deepest test's own: 20 + 40 and 40 + 33 rows."""
    bundle = Bundle.open(tiny_bundle)
    row = 2 * bundle.config.num_hidden_layers * bundle.config.num_key_value_heads * bundle.config.head_dim
    needed = sum(tensor.bytes for tensor in bundle.tensors.values()) + (20 + 40 + 73) * row * 2
    options = ProfileOptions(depth=(20, 40, 20), prefill=(33,), generate=5)
    for free in (2 * needed, 2 * needed - 1):
        monkeypatch.setattr("edge.measure.profile.run.available_memory", lambda free=free: free)
        with nullcontext() if free == 2 * needed else pytest.raises(ProfileError, match="2 configurations"):
            _check_memory([(bundle, "float16")] * 2, options)


def test_a_row_of_three_repeats(tiny_bundle):
    """Medians of speed and energy, shares of the median time, and the largest memory, whichever repeat had
    it.
    """
    bundle, test = Bundle.open(tiny_bundle), ("decode", 2, 8)
    cost = NetworkCost.of(bundle.config, [], "float16")
    ready = SimpleNamespace(
        **{"threads": 2, "activations": "int8", "tier": "x", "max_batch": 8},
        **{"load_seconds": 0.5, "workspace_bytes": 7},
    )
    measured = [
        Measured(2.0, (1.5, 0.5), 300, 4.0),
        Measured(1.0, (0.5, 0.5), 900, None),
        Measured(4.0, (3.0, 1.0), 100, 10.0),
    ]
    each = _Configuration(
        *("m", "native", "dense", "float16", bundle, cost, SimpleNamespace(ready=ready)),
        measured={test: measured},
    )
    pairs = (9 + 10) * cost.attention  # of two tokens after 8 others
    limits = Roofline((9 + 10) * cost.kv_row, float("inf"), 4.0 * pairs)
    row = _row(each, test, ProfileOptions(depth=(8,)), limits)
    assert row.samples == (1.0, 2.0, 0.5)
    assert (row.tokens_per_second.median, row.tokens_per_second.min, row.tokens_per_second.max) == (1, 0.5, 2)
    assert (row.bandwidth_share, row.compute_share) == (0.5, 0.125)
    assert (row.peak_memory_bytes, row.joules_per_token, row.ttft_seconds) == (900, 3.5, None)
    assert (row.latency_percentiles[0], row.latency_percentiles[100]) == (0.5, 3.0)
    assert (row.memory.kv_cache, row.memory.workspace) == (10 * cost.kv_row, 7)


def test_an_error_of_the_process_is_a_sentence(setup):
    with pytest.raises(EdgeError, match="Unknown kv_type 'float3'"):
        Worker(replace(setup, options={**setup.options, "kv_type": "float3"}))
    with pytest.raises(EdgeError, match="There is no file or folder"):
        Worker(replace(setup, model=setup.model + "/absent"))


def test_a_killed_process_is_a_sentence(setup):
    with Worker(setup) as worker:
        worker.measure("decode", 2, 0)
        os.kill(worker._child.pid, signal.SIGKILL)
        with pytest.raises(ProfileError, match=r"ended early \(exit code -9\)"):
            worker.measure("decode", 2, 0)


@pytest.mark.slow
def test_the_cost_model_predicts_decoding_within_25_percent():
    """One run, and it counts; a run that the profiler itself calls noisy says nothing about the model."""
    options = ProfileOptions(prefill=(0,), generate=32, depth=(0, 512), fill="synthetic", repeat=9)
    found = profile("random:minicpm4-0.5b", options)
    if found.machine.noisy or found.machine.throttled:
        pytest.skip(f"the machine is not quiet enough to judge a prediction: {found.machine.remarks[0]}")
    limits = found.machine.limits[0]
    roofline = Roofline(limits.read_bandwidth_gb_s * 1e9, limits.int8_tops * 5e11, limits.float_tflops * 5e11)
    for row in found.results:
        assert _predicted(row.depth, roofline) * row.tokens_per_second.median == pytest.approx(1, abs=0.25)


def _predicted(depth: int, roofline: Roofline) -> float:
    """Seconds of a step in the middle of the decode that was measured, from the shapes alone."""
    from edge.config.presets import preset
    from edge.quant.scheme import QuantScheme

    cost = NetworkCost.planned(preset("minicpm4-0.5b"), QuantScheme("int4", 32), None, "float16")
    return cost.decode_seconds(depth + 16, roofline)
