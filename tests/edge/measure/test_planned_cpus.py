"""Predictions for the CPUs of devices: the table of them, and the arithmetic against figures by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from edge.config.presets import preset
from edge.errors import EdgeError
from edge.measure.profile.cores import CORES, Core, Rates
from edge.measure.profile.cost import NetworkCost, binding, pass_seconds
from edge.measure.profile.cpu import Cluster, Cpu, CpuModel
from edge.measure.profile.devices import DEVICES
from edge.measure.profile.plan import PlannedDevice, plan
from edge.quant.scheme import QuantScheme

ROOT = Path(__file__).resolve().parents[3]
CPUS = {name: each.cpu for name, each in DEVICES.items() if each.cpu is not None}
# Loops with rates that are easy to divide by.
RATES = Rates(
    one_int4_g32=4,
    one_int4_g128=5,
    one_ternary=2,
    one_int8=10,
    many_g32=20,
    many_g128=40,
    many_int8=25,
    scores_float16=2,
    scores_float32=4,
    scores_int8=8,
    scores_int16=8,
    values_float16=2,
    values_float32=4,
    values_int8=8,
    values_int16=8,
    halves=1,
    nibbles=16,
    powers=0.5,
)
CPU = Cpu(
    (Cluster(2, Core("neon", "none", RATES), 1.0), Cluster(1, Core("neon", "none", RATES), 2.0)), 0.5, "x"
)


def model_of(**changes) -> CpuModel:
    """The 0.5B shape with round costs, on CPU at 100 GB/s: 40 GB/s of weights, and 4e9 cycles a second."""
    cost = NetworkCost(10**9, 10**9, 2 * 10**8, 10**7, 1000, 2 * 10**5, "int8", "float32")
    int4 = QuantScheme("int4", 32)
    start = CpuModel(cost, preset("minicpm4-0.5b"), "float16", int4, int4, CPU, 100e9, 256)
    return replace(start, **changes)


@pytest.mark.parametrize("name", CPUS)
def test_every_device_is_sane(name):
    cpu, device = CPUS[name], DEVICES[name]
    assert 0.3 <= cpu.read_share <= 0.9 and len(cpu.assumption) > 15
    assert 10 <= device.bandwidth_gb_s <= 300 and device.int8_tops is None
    for each in cpu.clusters:
        assert 1 <= each.count <= 12 and 1 <= each.clock_ghz <= 4
        assert each.core in CORES.values()


@pytest.mark.parametrize("name", CORES)
def test_every_core_is_sane(name):
    core = CORES[name]
    source = ROOT / "kernels" / "src" / "tiers" / f"{core.tier.replace('-', '_')}.cpp"
    assert f'"{core.tier}"' in source.read_text(encoding="utf-8")
    rates = core.rates
    assert all(0.2 < each < 130 for each in asdict(rates).values())
    # Long groups have less to do beside the products; converted keys are faster than those that are not.
    assert rates.one_int4_g32 < rates.one_int4_g128 and rates.many_g32 < rates.many_g128
    assert rates.scores_float16 < rates.scores_float32 and rates.one_int4_g32 < rates.many_g32


def test_the_figures_are_those_of_the_document():
    kept = json.loads((ROOT / "docs" / "figures" / "cycles.json").read_text(encoding="utf-8"))
    best = {each["core"]: each for each in kept["document"]["results"] if each["tier"].startswith("neon")}
    assert set(best) == set(CORES)
    for name, each in best.items():
        found = {loop: figures["per_cycle"] for loop, figures in each["loops"].items()}
        assert (each["tier"], each["model"]) == (CORES[name].tier, CORES[name].model)
        assert found == asdict(CORES[name].rates), "run `python -m scripts.cycles --write`"


def test_a_decode_step_by_hand():
    """1 GB at 40 GB/s beside 2.1e8 multiply-adds at 4 a cycle; attention to 101 positions, for 8 rows."""
    (stream, compute), (read, attention) = model_of().decode_parts(100)
    assert (stream, compute) == (pytest.approx(1 / 40), pytest.approx(2.1e8 / (4 * 4e9)))
    work = 101 * 2e5
    by_hand = work / (4 * 4e9) + work / 2 / 64 / (0.5 * 4e9) + work / 8 / 4e9  # float32, powers, converting
    assert (read, attention) == (pytest.approx(101 * 1000 / 40e9), pytest.approx(by_hand))
    parts = model_of().decode_parts(100)
    assert pass_seconds(parts) == pytest.approx(1 / 40 + by_hand + 2e-4) and binding(parts) == "memory"


def test_passes_of_streams_and_rows_by_hand():
    """Weights at 40 GB/s once, matrices and head at 20 a cycle; two caches of 101 rows, or one of 102."""
    (stream, compute), attention = model_of().decode_parts(100, streams=2)
    assert (stream, compute) == (pytest.approx(1 / 40), pytest.approx(2 * 2.1e8 / (20 * 4e9)))
    assert attention == pytest.approx(tuple(2 * each for each in model_of().decode_parts(100)[1]))
    (stream, compute), (read, attention) = model_of().decode_parts(100, rows=2)
    assert (stream, compute) == (pytest.approx(1 / 40), pytest.approx(2 * 2.1e8 / (20 * 4e9)))
    work = (101 + 102) * 2e5
    by_hand = (
        work / (4 * 4e9) + work / 2 / 64 / (0.5 * 4e9) + work / 16 / 4e9
    )  # 16 query rows are converted for
    assert (read, attention) == (pytest.approx(102 * 1000 / 40e9), pytest.approx(by_hand))


def test_a_prefill_by_hand():
    """300 tokens in two pieces: matrices at 20 a cycle, the head once at 4; 1 + 2 + ... + 300 positions."""
    (stream, compute), (read, attention) = model_of().prefill_parts(300, 0)
    assert stream == pytest.approx(2 / 40)
    assert compute == pytest.approx(300 * 2e8 / (20 * 4e9) + 1e7 / (4 * 4e9))
    work = 45_150 * 2e5
    by_hand = work / (4 * 4e9) + work / 2 / 64 / (0.5 * 4e9) + work / 128 / 4e9
    assert (read, attention) == (pytest.approx(300 * 1000 * 2 / 40e9), pytest.approx(by_hand))
    assert binding(model_of().prefill_parts(300, 0)) == "arithmetic"


def test_other_quantizations_take_other_loops():
    """Multiply-adds per cycle of body and head in a decode step, of the body in a prefill."""
    ternary, long = QuantScheme("ternary", 128), QuantScheme("int4", 128)
    int8, row = QuantScheme("int8", 32), QuantScheme("int4", 0)
    for body, head, one, many in (
        (ternary, long, 2e8 / 2 + 1e7 / 5, 40),
        (int8, int8, 2.1e8 / 10, 25),
        (row, row, 2.1e8 / 5, 40),
    ):
        model = model_of(body=body, head=head)
        assert model.decode_parts(0)[0][1] == pytest.approx(one / 4e9)
        first, second = (model.prefill_parts(n, 0)[0][1] for n in (1, 2))
        assert second - first == pytest.approx(2e8 / many / 4e9)


def test_int8_keys_and_few_query_rows_are_not_converted():
    work = 101 * 2e5
    powers = work / 2 / 64 / (0.5 * 4e9)
    int8 = model_of(kv_type="int8").decode_parts(100)[1][1]
    assert int8 == pytest.approx(work / (8 * 4e9) + powers)
    int4 = model_of(kv_type="int4").decode_parts(100)[1][1]  # unpacked for 8 rows at once
    assert int4 == pytest.approx(work / (8 * 4e9) + powers + work / 8 / (16 * 4e9))
    few = model_of(config=replace(preset("minicpm4-0.5b"), num_key_value_heads=4)).decode_parts(100)[1][1]
    assert few == pytest.approx(work / (2 * 4e9) + powers)


def test_a_slow_core_binds_and_a_fast_memory_does_not_help():
    slow = PlannedDevice("x", 1000.0, None, "given", replace(CPU, read_share=1.0))
    faster = replace(slow, bandwidth_gb_s=2000.0)
    (a,), (b,) = (plan("random:minicpm4-0.5b", context=512, device=each) for each in (slow, faster))
    assert {each.limit for each in a.predicted} == {"arithmetic"} and a.predicted == b.predicted


def test_floats_are_refused():
    device = PlannedDevice("x", 50.0, None, "given", CPU)
    with pytest.raises(EdgeError, match="predicted for int4, int8 and ternary weights"):
        plan("random:minicpm4-0.5b", context=512, quantize=("f16",), device=device)


def test_depths_and_lengths_are_those_asked_for():
    device = PlannedDevice("x", 50.0, None, "given", CPU)
    (found,) = plan("random:minicpm4-0.5b", context=4096, device=device, depth=(0, 2048), prefill=(512,))
    assert [(each.test, each.tokens, each.depth) for each in found.predicted] == [
        ("prefill", 512, 0),
        ("prefill", 512, 2048),
        ("decode", 1, 0),
        ("decode", 1, 2048),
    ]
    (none,) = plan("random:minicpm4-0.5b", context=4096, device=device, depth=(0,), prefill=(0,))
    assert [each.test for each in none.predicted] == ["decode"]
    with pytest.raises(EdgeError, match="A prefill of 512 at depth 4000 does not fit into a context of 4096"):
        plan("random:minicpm4-0.5b", context=4096, device=device, depth=(4000,), prefill=(512,))
