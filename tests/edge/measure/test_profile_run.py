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
from edge.executors.memory import workspace_bytes
from edge.executors.options import RunOptions
from edge.executors.protocol import SequenceStep, run_step
from edge.executors.registry import EXECUTORS
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.measure.profile import Profile, ProfileOptions, profile
from edge.measure.profile.cost import NetworkCost, Roofline
from edge.measure.profile.limits import variation_remarks
from edge.measure.profile.measure import Bench, Measured
from edge.measure.profile.options import Case
from edge.measure.profile.room import check_room
from edge.measure.profile.run import _Configuration, _row
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
    assert {row.case for row in found.results} == set(OPTIONS.tests)
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
    """The reference in PyTorch: float32 throughout."""
    pytest.importorskip("torch")
    options = replace(OPTIONS, executor=("native", "torch"), threads=(1,), depth=(0,), prefill=(), repeat=1)
    native, reference = profile(tiny_bundle, options).results
    assert (native.executor, reference.executor) == ("native", "torch")
    assert (reference.kv_type, reference.activations, reference.threads) == ("float32", "float32", 1)
    assert reference.tier.startswith("torch ")
    assert reference.weight_bytes_per_token > 4 * native.weight_bytes_per_token
    assert reference.tokens_per_second.median > 0 and native.tokens_per_second.median > 0


def test_synthetic_and_honest_caches_have_the_same_length(tiny_executor):
    for fill in ("prefill", "synthetic"):
        bench = Bench(tiny_executor, fill)
        bench.measure("decode", 3, 20, 2)
        assert [cache.length for cache in bench._filled(20, 2)] == [20, 20]


def test_streams_go_through_the_executor_together(tiny_executor, monkeypatch):
    """Each draws from its own logits after its own cache: what it reads alone, it reads beside the others."""
    seen, forward = [], tiny_executor.forward

    def recorded(steps):
        results = forward(steps)
        logits = [None if each.logits is None else each.logits[-1] for each in results]
        seen.append([(list(step.tokens), each) for step, each in zip(steps, logits, strict=True)])
        return results

    monkeypatch.setattr(tiny_executor, "forward", recorded)
    bench = Bench(tiny_executor, "prefill")
    bench.measure("decode", 5, 20, 3)
    seen.clear()
    found = bench.measure("decode", 5, 20, 3)
    assert [len(steps) for steps in seen] == [3] * 5 and len(found.token_seconds) == 5
    assert found.seconds >= sum(found.token_seconds)
    together = [[tokens for steps in seen for tokens in steps[stream][0]] for stream in range(3)]
    assert len({tuple(tokens) for tokens in together}) == 3
    for cache, tokens, (_, logits) in zip(bench._filled(20, 3), together, seen[-1], strict=True):
        np.testing.assert_array_equal(run_step(tiny_executor, SequenceStep(cache, tokens)).logits[0], logits)


def test_a_verification_is_one_pass_over_all_its_rows(tiny_executor, monkeypatch):
    seen, forward = [], tiny_executor.forward
    monkeypatch.setattr(tiny_executor, "forward", lambda steps: seen.append(steps) or forward(steps))
    bench = Bench(tiny_executor, "prefill")
    found = bench.measure("verify", 7, 20)
    passes = [step for (step,) in seen if step.logits == "all"]
    assert all(len(step.tokens) == 7 for step in passes) and len(passes) == 2 * len(found.token_seconds)
    assert found.seconds == np.median(found.token_seconds) and bench._filled(20, 1)[0].length == 20
    (ops,) = bench.operators("verify", 7, 20)
    (linear,) = (each for each in ops if each["operation"] == "head")
    config = tiny_executor.config
    assert linear["operations"] == 7 * config.hidden_size * config.vocab_size


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"streams": (300,)}, "up to 256 tokens, not those of 300 streams: give --streams at most that"),
        ({"rows": (2, 257)}, "up to 256 tokens, not those of 257 rows: give --rows at most that"),
    ],
)
def test_more_than_a_pass_takes_is_refused(tiny_bundle, changes, sentence):
    with pytest.raises(ProfileError, match=sentence):
        profile(tiny_bundle, replace(OPTIONS, threads=(1,), depth=(0,), prefill=(), **changes))


def test_streams_that_would_take_turns_are_refused(tiny_bundle):
    pytest.importorskip("torch")
    options = replace(OPTIONS, executor=("torch",), threads=(1,), depth=(0,), prefill=(), repeat=1)
    with pytest.raises(ProfileError, match=r"'torch' runs several sequences one after another.*--streams"):
        profile(tiny_bundle, replace(options, streams=(1, 2)))
    assert {row.case for row in profile(tiny_bundle, replace(options, rows=(2,))).results} >= {
        Case("verify", 2, 0)
    }


def test_streams_and_rows_in_the_document(tiny_bundle):
    options = replace(OPTIONS, threads=(1,), prefill=(), depth=(20,), streams=(1, 3), rows=(4, 65))
    found = {row.case: row for row in profile(tiny_bundle, options).results}
    one, three = (found[Case("decode", 5, 20, streams)] for streams in (1, 3))
    assert (one.streams, three.streams, three.rows, three.seconds) == (1, 3, None, None)
    assert three.tokens_per_second.median == np.median(three.samples)
    assert three.weight_bytes_per_token == pytest.approx(one.weight_bytes_per_token / 3)
    assert three.kv_bytes_per_token == pytest.approx(one.kv_bytes_per_token)
    assert three.operations_per_token == pytest.approx(one.operations_per_token)
    assert three.memory.kv_cache == 3 * one.memory.kv_cache
    # Each pass gives three tokens.
    rates = [3 / three.latency_percentiles[percent] for percent in (70, 30)]
    assert rates[0] <= three.tokens_per_second.p50 <= rates[1]
    verify = found[Case("verify", 4, 20)]
    assert (verify.rows, verify.streams, verify.ttft_seconds) == (4, 1, None)
    assert verify.tokens_per_second.median == pytest.approx(4 / verify.seconds, rel=0.5)
    assert verify.samples and 4 / max(verify.samples) <= verify.seconds <= 4 / min(verify.samples)
    assert verify.weight_bytes_per_token == pytest.approx(one.weight_bytes_per_token / 4)
    assert found[Case("verify", 65, 20)].rows == 65  # more than a tree holds


def test_a_busy_machine_marks_the_run(tiny_bundle, busy_machine):
    options = replace(OPTIONS, threads=(1,), depth=(0,), repeat=3)
    machine = profile(tiny_bundle, options).machine
    assert machine.noisy and machine.other_cpu_share is not None and machine.other_cpu_share > 0.1
    assert any("other processes used" in remark for remark in machine.remarks)


def test_a_context_beyond_the_model_is_refused(tiny_bundle):
    with pytest.raises(EdgeError, match="context of 605 tokens is beyond the 512"):
        profile(tiny_bundle, replace(OPTIONS, depth=(600,), prefill=(0,)))


def test_more_memory_than_there_is_is_refused(tiny_bundle, monkeypatch):
    monkeypatch.setattr("edge.measure.profile.room.available_memory", lambda: 1 << 16)
    with pytest.raises(ProfileError, match=r"2 configurations need .* measure fewer"):
        profile(tiny_bundle, OPTIONS)


def test_the_memory_of_a_run_to_the_byte(tiny_bundle, monkeypatch):
    """Weights, workspace, and a cache at every depth that grows by the longest test; that of every further
    stream by its decode: 20 + 33 and 40 + 33 rows, twice 20 + 5 and 40 + 5.
    """
    bundle = Bundle.open(tiny_bundle)
    row = 2 * bundle.config.num_hidden_layers * bundle.config.num_key_value_heads * bundle.config.head_dim
    fixed = sum(tensor.bytes for tensor in bundle.tensors.values()) + workspace_bytes(bundle.config, 256)
    options = ProfileOptions(depth=(20, 40, 20), prefill=(33,), generate=5, rows=(7,))
    for streams, rows in ((1, 53 + 73), (3, 53 + 73 + 2 * (25 + 45))):
        needed = 2 * (fixed + rows * row * 2)
        several = replace(options, streams=(1, streams))
        for free in (needed, needed - 1):
            monkeypatch.setattr("edge.measure.profile.room.available_memory", lambda free=free: free)
            refused = pytest.raises(ProfileError, match=f"2 configurations .* with {rows} tokens in each")
            with nullcontext() if free == needed else refused:
                check_room([(bundle, EXECUTORS.get("native"), "dense", "float16")] * 2, several)


def test_a_row_of_three_repeats(tiny_bundle):
    """Medians of speed and energy, shares of the median time, and the largest memory, whichever repeat had
    it.
    """
    bundle, test = Bundle.open(tiny_bundle), Case("decode", 2, 8)
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
        worker.measure(Case("decode", 2, 0))
        os.kill(worker._child.pid, signal.SIGKILL)
        with pytest.raises(ProfileError, match=r"ended early \(exit code -9\)"):
            worker.measure(Case("decode", 2, 0))


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
