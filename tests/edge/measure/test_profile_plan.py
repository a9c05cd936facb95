"""What a pass costs by its shapes, and the plans for devices that are made from that."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import get_args

import pytest

from edge.config import KVType
from edge.config.presets import preset
from edge.errors import EdgeError
from edge.measure.profile.cost import NetworkCost, Roofline, arithmetic_of, planned_tensors
from edge.measure.profile.devices import DEVICES, device
from edge.measure.profile.operators import summarise
from edge.measure.profile.plan import PlannedDevice, parse_size, plan
from edge.quant.scheme import QuantScheme


def test_cost_of_a_known_shape():
    """MiniCPM4-0.5B by hand: 24 layers of 1024, 16 + 2 heads of 64, MLP 4096, tied vocabulary of 73448."""
    config, int4 = preset("minicpm4-0.5b"), QuantScheme("int4", 32)
    cost = NetworkCost.of(config, planned_tensors(config, int4), "float16")
    layer = 1024 * (1024 + 2 * 128) + 1024 * 1024 + 3 * 1024 * 4096
    assert cost.body == 24 * layer and cost.head == 73448 * 1024
    assert cost.kv_row == 24 * 2 * 2 * 64 * 2
    assert cost.attention == 24 * 2 * 16 * 64
    bytes_of_weights = (24 * layer + 73456 * 1024) * 18 // 32  # 32 codes of half a byte and a scale of 2
    assert cost.streamed == cost.resident == bytes_of_weights + (2 * 24 + 1) * 4096


def test_an_untied_embedding_is_not_streamed():
    config = replace(preset("minicpm4-0.5b"), tie_word_embeddings=False)
    cost = NetworkCost.of(config, planned_tensors(config, QuantScheme("int8", 32)), "float16")
    assert cost.resident - cost.streamed == QuantScheme("int8", 32).packed_bytes(73448, 1024)
    assert cost.head == 73448 * 1024


def test_attention_sees_itself_and_all_before():
    cost = NetworkCost(0, 0, 0, 0, 0, 10, "int8", "float32")
    assert cost.attention_pairs(3, 5) == 10 * (6 + 7 + 8)


def test_longest_context_is_the_longest_that_fits():
    (first,) = plan("random:minicpm4-8b", memory=parse_size("8G"), context=131072)
    assert not first.fits and 0 < first.longest_context < 131072
    (fits,) = plan("random:minicpm4-8b", memory=parse_size("8G"), context=first.longest_context)
    (too_long,) = plan("random:minicpm4-8b", memory=parse_size("8G"), context=first.longest_context + 1)
    assert fits.fits and not too_long.fits
    assert too_long.total_bytes - fits.total_bytes == 32 * 2 * 2 * (128 * 2 + 4)  # of int16 and a scale


def test_what_fills_the_memory_exactly_fits():
    (whole,) = plan("random:minicpm4-0.5b", context=1024)
    for size, fits in ((whole.total_bytes, True), (whole.total_bytes - 1, False)):
        (found,) = plan("random:minicpm4-0.5b", context=1024, memory=size)
        assert (found.fits, found.longest_context) == (fits, 1024 if fits else 1023)


def test_planned_weights_are_those_of_a_bundle(smollm2):
    (own,) = plan("smollm2-135m", context=100)
    assert own.weights_bytes == sum(info.bytes for info in smollm2.files.tensors.values())
    assert own.predicted == ()


def test_predicted_speed_follows_the_bandwidth():
    slow, fast = (PlannedDevice("x", gb, 100.0, "given") for gb in (50.0, 100.0))
    (a,), (b,) = (plan("random:minicpm4-8b", context=4096, device=each) for each in (slow, fast))
    prefill, *decodes = a.predicted
    assert b.predicted[1].tokens_per_second == pytest.approx(2 * decodes[0].tokens_per_second, rel=0.01)
    assert [each.depth for each in decodes] == [0, 1024, 2048, 4095]
    speeds = [each.tokens_per_second for each in decodes]
    assert speeds == sorted(speeds, reverse=True) and {each.limit for each in decodes} == {"memory"}
    assert (prefill.test, prefill.limit) == ("prefill", "arithmetic")
    assert prefill.seconds == pytest.approx(4096 / prefill.tokens_per_second, rel=1e-3)


def test_without_an_arithmetic_rate_there_is_no_prefill_speed():
    (found,) = plan("random:minicpm4-0.5b", context=512, device=PlannedDevice("x", 50.0, None, "given"))
    assert {each.test for each in found.predicted} == {"decode"}


def test_predicted_times_by_hand():
    """1 GB of weights, 1 kB of cache and 1000 multiply-adds of attention per position, at round limits."""
    cost = NetworkCost(10**9, 10**9, 2 * 10**9, 10**8, 1000, 1000, "int8", "float32")
    limits = Roofline(read_bytes=10e9, int8=1e12, float32=1e9)
    # Weights at 80 % of the bandwidth; 101 positions and 101,000 multiply-adds at 55 % of the nearer limit.
    decode = 0.1 / 0.8 + max(101_000 / 10e9, 101_000 / 1e9) / 0.55 + 2e-4
    assert cost.decode_seconds(100, limits) == pytest.approx(decode)
    # 200 tokens: matrices at half the int8 peak, which is longer than reading; 1 + 2 + ... + 200 pairs.
    prefill = (2e9 * 200 + 1e8) / 1e12 / 0.5 + 20_100 * 1000 / 1e9 / 0.55 + 2e-4
    assert cost.prefill_seconds(200, 0, limits) == pytest.approx(prefill)


def test_predicted_passes_of_streams_and_rows_by_hand():
    """Weights are read once for all; every stream reads a cache of its own, the rows of one share it."""
    cost = NetworkCost(10**9, 10**9, 2 * 10**9, 10**8, 1000, 1000, "int8", "float32")
    limits = Roofline(read_bytes=10e9, int8=1e12, float32=1e9)
    weights = 0.1 / 0.8
    compute, read, attention = 2.1e9 / 1e12 / 0.5, 101_000 / 10e9 / 0.55, 101_000 / 1e9 / 0.55
    assert cost.decode_parts(100, limits, streams=40) == (
        pytest.approx((weights, 40 * compute)),
        pytest.approx((40 * read, 40 * attention)),
    )
    pairs = (101 + 102 + 103) * 1000
    assert cost.decode_parts(100, limits, rows=3) == (
        pytest.approx((weights, 3 * compute)),
        pytest.approx((103_000 / 10e9 / 0.55, pairs / 1e9 / 0.55)),
    )


def test_a_plan_of_streams_and_rows():
    """Every stream has a cache of its own at the context; rows that are not asked for at a depth must fit."""
    board = PlannedDevice("x", 50.0, 10.0, "given")
    facts = {"context": 512, "memory": 10**9}
    (one,), (four,) = (
        plan("random:minicpm4-0.5b", device=board, streams=streams, **facts) for streams in ((1,), (1, 4))
    )
    assert four.kv_cache_bytes == 4 * one.kv_cache_bytes
    assert four.total_bytes - one.total_bytes == 3 * one.kv_cache_bytes
    assert four.longest_context == one.longest_context // 4
    (found,) = plan("random:minicpm4-0.5b", device=board, streams=(1, 4), rows=(8,), **facts)
    speeds = {each[:4]: each for each in map(astuple, found.predicted)}
    single, several, verify = (
        speeds[case] for case in (("decode", 1, 0, 1), ("decode", 1, 0, 4), ("verify", 8, 0, 1))
    )
    assert several[4] == pytest.approx(4 / several[5], rel=1e-3) and single[4] < several[4] < 4 * single[4]
    assert verify[4] == pytest.approx(8 / verify[5], rel=1e-3) and single[5] < verify[5]
    assert {case[2] for case in speeds if case[0] == "verify"} == {0, 128, 256}  # at 511 there is no room
    with pytest.raises(EdgeError, match="A verification of 8 at depth 511 does not fit"):
        plan("random:minicpm4-0.5b", device=board, rows=(8,), depth=(511,), prefill=(1,), **facts)
    unknown = replace(board, int8_tops=None)
    (found,) = plan("random:minicpm4-0.5b", device=unknown, streams=(1, 4), rows=(8,), **facts)
    assert {(each.test, each.streams) for each in found.predicted} == {("decode", 1)}


def test_attention_is_held_against_the_arithmetic_of_its_cache():
    """1000 multiply-adds: 500 s at 4 int8 products a second, two for each; 1000 s at one in float32."""
    limits = Roofline(read_bytes=1e9, int8=4.0, float32=1.0)
    for kv_type, seconds in (("float16", 1000), ("float32", 1000), ("int8", 500)):
        cost = NetworkCost.of(preset("minicpm4-0.5b"), [], kv_type)
        assert cost.seconds_at_peak(0, 1000, limits) == seconds
        entry = {"operation": "attention", "layer": 0, "kernel": "", "seconds": 2000.0}
        (found,) = summarise([[{**entry, "bytes": 1, "operations": 1000}]], kv_type, limits)
        assert (found.limit, found.limit_share) == (arithmetic_of("attention", "", kv_type), seconds / 2000)
    assert limits.peak("int16") == 2.0
    assert all(arithmetic_of("attention", "", each) for each in get_args(KVType))


def test_operators_are_held_against_their_nearer_limit():
    limits = Roofline(read_bytes=10.0, int8=100.0, float32=20.0)

    def found(kernel, size, operations):
        entry = {"operation": "o", "layer": 0, "kernel": kernel, "seconds": 4.0}
        (one,) = summarise([[{**entry, "bytes": size, "operations": operations}]], "int8", limits)
        return one.limit, one.limit_share

    assert found("int8 dots, int4 weights", 10, 200) == ("int8", 0.5)
    assert found("two int8 dots, int4 weights", 10, 100) == ("int16", 0.5)
    assert found("float32 products, dequantized int4", 10, 20) == ("memory", 0.25)
    assert found("float32 products, dequantized int4", 10, 40) == ("float32", 0.5)
    assert found("", 0, 0) == ("", 0.0)


def test_predictions_never_beat_the_limits():
    config, limits = preset("minicpm4-0.5b"), Roofline(30e9, 700e9, 200e9)
    cost = NetworkCost.planned(config, QuantScheme("int4", 32), None, "float16")
    assert cost.decode_seconds(0, limits) > cost.streamed / limits.read_bytes
    assert cost.prefill_seconds(512, 0, limits) > cost.body * 512 / limits.int8


@pytest.mark.parametrize(
    ("text", "size"), [("8G", 8 * 10**9), ("7.5GiB", 15 << 29), ("512mb", 512 * 10**6), ("100", 100)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "8X", "-1G", "G", "nan", "inf"])
def test_bad_sizes(text):
    with pytest.raises(EdgeError, match="is not a size"):
        parse_size(text)


def test_every_device_has_a_source():
    assert {"jetson-agx-orin", "jetson-orin-nano", "jetson-thor", "rtx-4090", "rtx-5090"} <= set(DEVICES)
    assert device("jetson-agx-orin").bandwidth_gb_s == 204.8 and device("rtx-4090").bandwidth_gb_s == 1008
    assert all(len(each.source) > 20 for each in DEVICES.values())
    with pytest.raises(EdgeError, match="Unknown device 'psp'; known are jetson-agx-orin"):
        device("psp")


def test_int16_activations_cost_two_int8_products():
    limits, config = Roofline(read_bytes=1e9, int8=4.0, float32=1.0), preset("minicpm4-0.5b")
    for scheme, activations, seconds in (
        ("int4", "int8", 250),
        ("int4", "int16", 500),
        ("int4", "float32", 1000),
        ("f16", "int16", 1000),
    ):
        tensors = planned_tensors(config, QuantScheme.from_name(scheme))
        cost = NetworkCost.of(config, tensors, "float16", activations)
        assert cost.seconds_at_peak(1000, 0, limits) == seconds
