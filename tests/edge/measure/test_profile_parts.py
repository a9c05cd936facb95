"""The parts of the profiler that measure nothing: options, schema, comparison, noise."""

from __future__ import annotations

import copy
import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edge.apps.profile.view import comparison_json
from edge.errors import EdgeError
from edge.measure.profile import ProfileOptions, machine
from edge.measure.profile.adb import check_options
from edge.measure.profile.compare import compare
from edge.measure.profile.cost import Roofline
from edge.measure.profile.energy import EnergyMeter
from edge.measure.profile.export import to_csv
from edge.measure.profile.limits import best_of, limits_of, variation_remarks
from edge.measure.profile.machine import noise_remarks, throttle_remarks
from edge.measure.profile.options import Case
from edge.measure.profile.run import rate
from edge.measure.profile.schema import (
    SCHEMA,
    LimitSamples,
    MachineFacts,
    Memory,
    Operator,
    Profile,
    ProfileError,
    Row,
)

MACHINE = MachineFacts(
    *("Linux", "a CPU", 2, 1 << 34, "madvise", 20.0, 1.5, 0.4),
    (limits_of(2, [Roofline(19e9, 7.5e11, 1.8e11), Roofline(20e9, 7e11, 2e11)]),),
    *(0.1, 0.0, (2600.0, 2600.0), ()),
    *(False, False, ()),
)


def row(samples=(100.0, 102.0, 98.0), **changes):
    fields_of = dict(
        model="m",
        executor="native",
        quantize="int4-g32",
        threads=2,
        attention="dense",
        kv_type="float16",
        activations="int8",
        tier="avx2",
        fill="prefill",
        test="decode",
        tokens=64,
        depth=0,
        streams=1,
        rows=None,
        seconds=None,
        ttft_seconds=None,
        tokens_per_second=rate(list(samples), list(samples)),
        samples=tuple(samples),
        latency_percentiles=(0.01,) * 101,
        weight_bytes_per_token=1e8,
        kv_bytes_per_token=1e4,
        operations_per_token=2e8,
        bandwidth_share=0.5,
        compute_share=0.1,
        load_seconds=0.5,
        peak_memory_bytes=200_000_000,
        memory=Memory(100_000_000, 1_000_000, 5_000_000),
        joules_per_token=None,
        operators=(Operator("qkv", 0, "int4", 1e-4, 1000, 2000, "memory", 0.5),),
    )
    return Row(**{**fields_of, **changes})


def document(*rows):
    return Profile(SCHEMA, "minicpm-edge 0", "2026-01-01T00:00:00+00:00", 3, MACHINE, tuple(rows))


# ---- Schema


def test_json_round_trip():
    wanted = document(row(), row(test="prefill", ttft_seconds=0.25, latency_percentiles=()))
    assert Profile.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted


def spoil(data, path, value):
    changed = copy.deepcopy(data)
    place = changed
    for step in path[:-1]:
        place = place[step]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


@pytest.mark.parametrize("name", [field.name for field in fields(Row)])
def test_a_missing_field_is_named(name):
    data = spoil(document(row()).to_json(), ("results", 0, name), KeyError)
    with pytest.raises(ProfileError, match=f"no field '{name}'"):
        Profile.from_json(data)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("results", 0, "tokens"), "64", "'tokens' of entry 0 of 'results' .* must be int"),
        (("results", 0, "tokens"), True, "must be int"),
        (("results", 0, "samples"), 3, "must be a list"),
        (("results", 0, "samples", 1), "x", "entry 1 of 'samples'"),
        (("results", 0, "memory"), [], "must be a JSON object"),
        (("results", 0, "colour"), 1, "unknown field 'colour'"),
        (("machine", "noisy"), 0, "must be bool"),
        (("machine", "limits", 0, "samples", "int8_tops"), 1.5, "'int8_tops' of 'samples' .* must be a list"),
        (("schema",), 6, "has schema 6, but this program reads 1 to 5: measure again"),
        (("schema",), 0, "has schema 0, but"),
        (("results", 0, "streams"), None, "'streams' .* must be int"),
        (("schema",), "2", "has schema '2', but"),
    ],
)
def test_a_wrong_field_is_named(path, value, sentence):
    with pytest.raises(ProfileError, match=sentence):
        Profile.from_json(spoil(document(row()).to_json(), path, value))


def test_the_document_may_be_the_last_line_of_a_log(tmp_path):
    wanted = document(row())
    (tmp_path / "log").write_text("a table\nof figures\n" + json.dumps(wanted.to_json()) + "\n")
    assert Profile.load(tmp_path / "log") == wanted
    (tmp_path / "log").write_text("nothing")
    with pytest.raises(ProfileError, match="is not valid JSON"):
        Profile.load(tmp_path / "log")
    with pytest.raises(ProfileError, match="No such file"):
        Profile.load(tmp_path / "absent")


def of_schema_4(data):
    """One sequence decoded, and nothing was verified."""
    data = copy.deepcopy(data) | {"schema": 4}
    for each in data["results"]:
        for name in ("streams", "rows", "seconds"):
            del each[name]
    return data


def test_documents_of_schema_4_are_read():
    wanted = document(row(), row(test="prefill", ttft_seconds=0.25))
    assert Profile.from_json(of_schema_4(wanted.to_json())) == wanted


def of_schema_3(data):
    """It kept the medians of the limits only, and did not say which one an operator was held against."""
    data = of_schema_4(data) | {"schema": 3}
    for limits in data["machine"]["limits"]:
        del limits["samples"]
    for operator in data["results"][0]["operators"]:
        del operator["limit"]
    return data


def upgraded(wanted):
    """What is read of a document of an earlier schema that was once this one."""
    limits = tuple(replace(each, samples=LimitSamples((), (), ())) for each in wanted.machine.limits)
    rows = [
        replace(each, operators=tuple(replace(operator, limit="") for operator in each.operators))
        for each in wanted.results
    ]
    return replace(wanted, machine=replace(wanted.machine, limits=limits), results=tuple(rows))


def test_documents_of_schema_3_are_read():
    wanted = document(row())
    assert Profile.from_json(of_schema_3(wanted.to_json())) == upgraded(wanted)


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize(
    ("kind", "group", "name"),
    [
        ("int4", 32, "int4-g32"),
        ("int4-min", 32, "int4-g32-min"),
        ("ternary", 0, "ternary-row"),
        ("f16", 0, "f16"),
    ],
)
def test_documents_of_earlier_schemas_are_read(schema, kind, group, name):
    """Up to schema 2 a quantization was two fields; schema 1 called an operator's kernel its path."""
    data = of_schema_3(document(row(quantize=name)).to_json())
    (old,) = data["results"]
    old |= {"quantize": kind, "group": group}
    if schema == 1:
        old["operators"] = [
            {("path" if key == "kernel" else key): value for key, value in old["operators"][0].items()}
        ]
    assert Profile.from_json({**data, "schema": schema}) == upgraded(document(row(quantize=name)))


@pytest.mark.parametrize("limits", [None, 3, [3], [{}]])
def test_damaged_limits_of_an_earlier_schema_are_refused(limits):
    data = of_schema_3(document(row()).to_json())
    with pytest.raises(ProfileError):
        Profile.from_json(spoil(data, ("machine", "limits"), limits))
    with pytest.raises(ProfileError):
        Profile.from_json(spoil(data, ("machine",), limits))


@pytest.mark.parametrize("field", ["quantize", "group", "operators"])
def test_a_damaged_document_of_an_earlier_schema_is_refused(field):
    data = of_schema_3(document(row(quantize="int4")).to_json()) | {"schema": 2}
    data["results"][0]["group"] = 32
    for value in (None, [1], {}):
        with pytest.raises(ProfileError):
            Profile.from_json(spoil(data, ("results", 0, field), value))


def test_csv_has_a_line_per_row():
    lines = to_csv(document(row(), row(depth=512))).splitlines()
    header = lines[0].split(",")
    assert len(lines) == 3 and "tokens_per_second.median" in header and "samples" not in header
    assert lines[2].split(",")[header.index("depth")] == "512"


def test_percentiles_are_rates_that_tokens_reach():
    found = rate([50.0, 60.0, 40.0], [float(v) for v in range(1, 101)])
    assert (found.median, found.min, found.max) == (50, 40, 60)
    assert found.p50 == 50.5 and found.p90 == pytest.approx(10.9) and found.p99 == pytest.approx(1.99)


# ---- Comparison


def test_ratio_and_interval():
    before, after = document(row()), document(row(samples=(50.0, 51.0, 49.0)))
    (found,) = compare(before, after).ratios
    assert found.ratio == 0.5
    assert 49 / 102 <= found.low < 0.5 < found.high <= 51 / 98
    assert found.is_slower(0.05) and not found.is_slower(0.6)


def test_slower_by_exactly_the_limit_is_not_slower():
    before, after = document(row(samples=(100.0,) * 3)), document(row(samples=(50.0,) * 3))
    (found,) = compare(before, after).ratios
    assert (found.ratio, found.low, found.high) == (0.5, 0.5, 0.5)
    assert not found.is_slower(0.5) and found.is_slower(0.49)
    (same,) = compare(before, before).ratios
    assert not same.is_slower(0)


def test_a_comparison_as_a_document():
    slow = row(samples=(50.0,) * 3, depth=7, tokens=16)
    before = document(row(samples=(100.0,) * 3, depth=7, tokens=16), row(), row(test="prefill", tokens=9))
    after = document(slow, row(samples=(99.0, 102.0, 98.0)), *(row(threads=n) for n in (3, 4, 5)))
    found = compare(before, after)
    facts = comparison_json(found, [ratio for ratio in found.ratios if ratio.is_slower(0.05)])
    assert (facts["only_before"], facts["only_after"]) == (1, 3)
    first, second = facts["ratios"]
    assert (first["before"], first["after"], first["ratio"]) == (100, 50, 0.5)
    assert (first["tokens"], first["depth"], first["slower"], second["slower"]) == (16, 7, True, False)
    assert (second["low"], second["high"]) == (found.ratios[1].low, found.ratios[1].high)
    assert second["low"] < 1 < second["high"]


def test_noise_is_no_slowdown():
    """Its interval reaches 1, so a median that is 7 % lower does not count."""
    before = document(row(samples=(100.0, 60.0, 105.0)))
    after = document(row(samples=(93.0, 110.0, 70.0)))
    (found,) = compare(before, after).ratios
    assert found.ratio == 0.93 and found.high > 1
    assert not found.is_slower(0.05)


def test_rows_are_matched_by_what_was_measured():
    before = document(row(), row(depth=512), row(threads=1))
    after = document(row(depth=512, tier="portable"), row(depth=1024), row(depth=512, streams=4))
    found = compare(before, after)
    assert [ratio.after.depth for ratio in found.ratios] == [512]
    assert [r.threads for r in found.only_before] == [2, 1]
    assert [(r.depth, r.streams) for r in found.only_after] == [(1024, 1), (512, 4)]
    with pytest.raises(ProfileError, match="no test in common"):
        compare(document(row()), document(row(depth=1)))


# ---- Options


def test_tests_are_every_length_at_every_depth():
    options = ProfileOptions(prefill=(16, 0, 8), generate=4, depth=(100, 0))
    wanted = (("prefill", 16), ("prefill", 8), ("decode", 4))
    assert options.tests == tuple(Case(test, tokens, depth) for depth in (0, 100) for test, tokens in wanted)
    assert options.context == 116


def test_streams_and_rows_are_tests_beside_them():
    """One row is what the others are compared with."""
    options = ProfileOptions(prefill=(), generate=4, streams=(4, 1, 4), rows=(9, 2), depth=(50,))
    decodes = [Case("decode", 4, 50, streams) for streams in (1, 4)]
    assert options.tests == (*decodes, *(Case("verify", rows, 50) for rows in (1, 2, 9)))
    assert options.context == 59
    assert replace(options, streams=(70,)).context == 70
    assert [str(case) for case in options.tests[1:3]] == ["decode 4 in 4 streams", "verify 1"]
    assert options.tests[1].total == 16
    only = ProfileOptions(prefill=(), generate=0, rows=(2,))
    assert [case.test for case in only.tests] == ["verify", "verify"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"executor": ("metal",)}, "Unknown executor 'metal'; choose one of native"),
        ({"attention": ("sliding",)}, "Unknown attention 'sliding'; choose one of dense"),
        ({"fill": "guess"}, "Unknown fill 'guess'; choose one of prefill"),
        ({"repeat": 0}, "repeat must be a whole number of 1 or more, got 0"),
        ({"depth": (-1,)}, "depth must be a whole number of 0 or more"),
        ({"threads": (0,)}, "threads must be"),
        ({"streams": (0,)}, "streams must be a whole number of 1 or more, got 0"),
        ({"streams": ()}, "streams is empty"),
        ({"rows": (0,)}, "rows must be a whole number of 1 or more, got 0"),
        ({"prefill": (0,), "generate": 0}, "nothing to measure"),
        ({"quantize": ()}, "quantize is empty"),
        ({"quantize": ("int3",)}, "Unknown quantization 'int3'"),
        ({"head": "none"}, "'none' is called 'source' now"),
    ],
)
def test_bad_options_are_refused(changes, sentence):
    with pytest.raises(EdgeError, match=sentence):
        ProfileOptions(**changes)


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"streams": (1, 2)}, "--streams and --rows"),
        ({"rows": (4,)}, "--streams and --rows"),
        ({"rope_regime": "long"}, "--rope-regime"),
    ],
)
def test_what_edge_bench_does_not_measure_is_refused(changes, flags):
    check_options(ProfileOptions())
    with pytest.raises(ProfileError, match=f"leave {flags} out"):
        check_options(ProfileOptions(**changes))


# ---- The machine


def test_energy_counters(tmp_path):
    """A tree like the kernel's, with a counter that starts again between the readings."""
    for name, value in (("intel-rapl:0", 900), ("intel-rapl:1", 10), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(value))
        (tmp_path / name / "max_energy_range_uj").write_text("999")
    meter = EnergyMeter(tmp_path)
    meter.start()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("30")
    assert meter.joules() == pytest.approx((200 + 20) / 1e6)


def test_no_energy_counters(tmp_path):
    meter = EnergyMeter(tmp_path)
    meter.start()
    assert meter.joules() is None


def test_noise_and_heat_say_why():
    assert noise_remarks(0.2, 0.05, 2) == () and noise_remarks(None, None, 2) == ()
    assert "3.5 processes" in noise_remarks(3.5, 0.0, 2)[0] and "40%" in noise_remarks(0.0, 0.4, 2)[0]
    assert (
        throttle_remarks((2600.0, 2590.0), (3, 3)) == ()
        and throttle_remarks((None, None), (None, None)) == ()
    )
    assert "2600 to 1800 MHz" in throttle_remarks((2600.0, 1800.0), (None, None))[0]
    assert "too hot" in throttle_remarks((None, None), (3, 4))[0]


def test_the_best_limits_of_a_run_count():
    """Whatever disturbs a measurement makes it lower, so each limit is taken where it was highest."""
    found = [Roofline(30e9, 4e11, 2e11), Roofline(50e9, 4.4e11, 1e11), Roofline(7e9, 5e11, 1.9e11)]
    assert best_of(found) == Roofline(50e9, 5e11, 2e11)
    limits = limits_of(2, found)
    assert (limits.read_bandwidth_gb_s, limits.int8_tops, limits.float_tflops) == (50.0, 1.0, 0.4)
    assert limits.samples == LimitSamples((30.0, 50.0, 7.0), (0.8, 0.88, 1.0), (0.4, 0.2, 0.38))


def test_limits_that_vary_by_more_than_15_percent_are_noise():
    steady = limits_of(1, [Roofline(85e9, 1e12, 1e11), Roofline(100e9, 1e12, 1e11)])
    assert variation_remarks([steady]) == ()
    varied = limits_of(2, [Roofline(7.04e9, 1e12, 1e11), Roofline(50e9, 1e12, 0.8e11)])
    assert variation_remarks([steady, varied]) == (
        "Noisy: between the tests the read bandwidth (threads: 2) was 7.0 to 50.0 GB/s.",
        "Noisy: between the tests the float peak (threads: 2) was 0.16 to 0.20 TFLOPS.",
    )


def test_what_we_used_ourselves_is_nobody_elses(monkeypatch):
    """8 seconds of CPU time in 10 s on 4 cores, of which 3 were ours; what was before does not count."""
    busy, clock = iter([40.0, 50.0, 58.0]), iter([0.0, 100.0, 110.0])
    monkeypatch.setattr(machine, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    watch = machine.Watch()
    watch.start(own_seconds=7.0)
    assert watch.result(own_seconds=10.0).other_cpu_share == 5 / 40


def test_the_hottest_sensor_counts(monkeypatch):
    sensors = {
        "board": [SimpleNamespace(current=t) for t in (40.0, 71.0)],
        "cpu": [SimpleNamespace(current=55.0)],
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    assert machine.temperature_celsius() == 71.0


def test_facts_that_a_system_does_not_tell_are_none(monkeypatch):
    """No sensors, no clock, a sandbox without /proc; and doctor goes on where psutil itself is missing."""

    def untold(*_):
        raise FileNotFoundError("/proc/stat")

    for name in ("virtual_memory", "cpu_times", "cpu_freq", "getloadavg"):
        monkeypatch.setattr(psutil, name, untold)
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    facts = (
        *(machine.memory_bytes, machine.load, machine.clock_mhz),
        *(machine.temperature_celsius, machine._busy_seconds),
    )
    assert [fact() for fact in facts] == [None] * 5
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert [fact() for fact in facts] == [None] * 5


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="compares with /proc/stat")
def test_busy_seconds_are_those_of_proc_stat():
    """User, nice, system, irq, softirq and steal; of what ran between the readings only a little more."""
    values = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    before = (sum(values) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")
    assert before - 1 <= machine._busy_seconds() <= before + 60
