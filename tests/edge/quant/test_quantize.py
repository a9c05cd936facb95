"""Round to nearest: against a slow plain reference, at odd sizes, and at the edges of float16."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import CheckpointError
from edge.quant import rounding as module
from edge.quant.packing import pack, unpack
from edge.quant.rounding import quantize, to_float16
from edge.quant.scheme import QuantScheme

SCHEMES = [
    QuantScheme("int4", 32),
    QuantScheme("int4", 128),
    QuantScheme("int4"),
    QuantScheme("int4", 32, minimum=True),
    QuantScheme("int4", 0, minimum=True),
    QuantScheme("int8", 32),
    QuantScheme("int8"),
    QuantScheme("ternary", 128),
    QuantScheme("ternary"),
]
SHAPES = [(1, 32), (3, 40), (17, 576), (5, 7), (64, 128), (2, 129)]


def plain_group(weights: np.ndarray, scheme: QuantScheme) -> tuple[np.ndarray, np.float16, np.float16]:
    """One group, weight by weight: codes, scale, minimum."""
    minimum = np.float16(0)
    if scheme.kind == "int8":
        scale, low, high, zero = np.float16(np.abs(weights).max() / np.float32(127)), -127, 127, 0
    elif scheme.kind == "ternary":
        scale, low, high, zero = np.float16(max(np.abs(weights).mean(dtype=np.float32), 1e-5)), 0, 2, 1
    elif scheme.minimum:
        minimum = np.float16(weights.min())
        scale, low, high, zero = np.float16((weights.max() - np.float32(minimum)) / np.float32(15)), 0, 15, 0
    else:
        extreme = weights[np.abs(weights).argmax()]
        scale, low, high, zero = np.float16(extreme / np.float32(-8)), 0, 15, 8
    codes = []
    for weight in weights:
        shifted = weight - np.float32(minimum)
        code = 0.0 if scale == 0 else round(float(shifted) / float(scale))
        codes.append(min(max(code + zero, low), high))
    return np.array(codes), scale, minimum


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_a_plain_reference(scheme: QuantScheme, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(11)
    weights = rng.standard_normal(shape, np.float32) * rng.uniform(0.01, 3, (shape[0], 1)).astype(np.float32)
    found = quantize(weights, scheme)
    assert found.scales.shape == (shape[0], scheme.groups(shape[1])) and found.scales.dtype == np.float16
    assert (found.minimums is not None) == scheme.minimum
    group = scheme.group or shape[1]
    wrong = 0
    for row in range(shape[0]):
        for index, start in enumerate(range(0, shape[1], group)):
            codes, scale, minimum = plain_group(weights[row, start : start + group], scheme)
            # The mean of a ternary group may differ in its last bit with the order of the sum.
            spread = 2**-10 if scheme.kind == "ternary" else 0
            assert found.scales[row, index] == pytest.approx(scale, rel=spread, abs=0)
            if found.minimums is not None:
                assert found.minimums[row, index] == minimum
            # x * (1 / s) and x / s may round a tie differently.
            wrong += int((found.codes[row, start : start + group] != codes).sum())
            assert np.abs(found.codes[row, start : start + group].astype(int) - codes).max() <= 1
    assert wrong <= 1 + weights.size // 1000


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_code_is_the_nearest_for_the_stored_scale(scheme: QuantScheme) -> None:
    weights = np.random.default_rng(3).standard_normal((20, 200), np.float32)
    found = quantize(weights, scheme)
    error = np.abs(found.dequantize() - weights)
    zero = {"int4": 0 if scheme.minimum else 8, "int8": 0, "ternary": 1}[scheme.kind]
    steps = {"int4": range(16), "int8": range(-127, 128), "ternary": range(3)}[scheme.kind]
    index = np.arange(200) // (scheme.group or 200)
    scales = found.scales.astype(np.float32)[:, index]
    offset = 0 if found.minimums is None else found.minimums.astype(np.float32)[:, index]
    best = np.full(weights.shape, np.inf, np.float32)
    for code in steps:
        best = np.minimum(best, np.abs((code - zero) * scales + offset - weights))
    assert (error <= best + 1e-6).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_tiny_and_constant_rows(scheme: QuantScheme) -> None:
    weights = np.zeros((4, 64), np.float32)
    weights[1] = 1e-9  # below the smallest float16
    weights[2] = -0.25
    weights[3, ::2] = 1e-6
    found = quantize(weights, scheme)
    values = found.dequantize()
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(values[0], 0)
    np.testing.assert_allclose(values[1], 0, atol=1e-4)
    np.testing.assert_allclose(values[2], -0.25, rtol=1e-3)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(5).standard_normal((50, 100), np.float32)
    for scheme in SCHEMES:
        whole = quantize(weights, scheme)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_CHUNK_WEIGHTS", 300)
            chunked = quantize(weights, scheme)
        np.testing.assert_array_equal(whole.codes, chunked.codes)
        np.testing.assert_array_equal(whole.scales, chunked.scales)
        np.testing.assert_array_equal(unpack(pack(whole, scheme), scheme, 50, 100).codes, whole.codes)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_other_float_types(kind: str) -> None:
    weights = np.random.default_rng(5).standard_normal((8, 64)).astype(kind)
    for scheme in SCHEMES:
        expected = quantize(weights.astype(np.float32), scheme)
        np.testing.assert_array_equal(quantize(weights, scheme).codes, expected.codes)


@pytest.mark.parametrize("trained_group", [0, 128, 32])
def test_fake_quantized_ternary_weights_pass_unchanged(trained_group: int) -> None:
    """BitCPM's checkpoints hold -s, 0 and s; a group that divides theirs keeps every value."""
    rng = np.random.default_rng(2)
    index = np.arange(256) // (trained_group or 256)
    scales = rng.uniform(0.01, 0.1, (12, index.max() + 1)).astype(np.float16).astype(np.float32)
    weights = rng.integers(-1, 2, (12, 256)) * scales[:, index]
    found = quantize(weights, QuantScheme("ternary", min(trained_group or 128, 128)))
    np.testing.assert_array_equal(found.dequantize(), weights)


def test_overflow_names_the_tensor() -> None:
    weights = np.zeros((2, 64), np.float32)
    weights[1, 3] = 1e9
    for scheme in SCHEMES:
        with pytest.raises(CheckpointError, match="up_proj"):
            quantize(weights, scheme, "up_proj")
    weights[1, 3] = 70000
    with pytest.raises(CheckpointError, match=r"up_proj holds 70000.*65504"):
        to_float16(weights, "up_proj")
    weights[0, 0] = np.inf  # which float16 does hold
    with pytest.raises(CheckpointError, match="up_proj holds"):
        to_float16(weights, "up_proj")
    weights[1, 3] = 65504
    np.testing.assert_array_equal(to_float16(weights), weights.astype(np.float16))


def test_floats_have_no_codes() -> None:
    with pytest.raises(ValueError, match="no codes"):
        quantize(np.zeros((2, 2), np.float32), QuantScheme("f16"))


@pytest.mark.parametrize(
    ("name", "weights", "scale", "minimum", "codes"),
    [
        # Of two extremes the positive one gets the code that only one sign has; the other is clipped.
        ("int4-row", [-1.0, 1.0, 0.5, 0.0], -0.125, None, [15, 0, 4, 8]),
        ("int4-row", [-1.0, 0.75, 0.5, 0.0], 0.125, None, [0, 14, 12, 8]),
        ("int4-row-min", [-1.0, 2.75, 0.0, 0.3], 0.25, -1.0, [0, 15, 4, 5]),
        ("int8-row", [-1.984375, 1.0, 0.5, 0.0], 0.015625, None, [-127, 64, 32, 0]),
        # The mean of sizes; not less than BitCPM's 1e-5, under which all three become 0 and 1.
        ("ternary-row", [1.0, -3.0, 0.5, 3.5], 2.0, None, [1, 0, 1, 2]),
        ("ternary-row", [3e-6, -1e-6, 8e-6, 4e-6], np.float16(1e-5), None, [1, 1, 2, 1]),
        ("ternary-row", [-2e-6, 0.0, 2e-6, 0.0], np.float16(2e-6), None, [0, 1, 2, 1]),
    ],
)
def test_by_hand(name: str, weights: list[float], scale: float, minimum: float | None, codes: list) -> None:
    found = quantize(np.array([weights], np.float32), QuantScheme.parse(name))
    assert found.scales.tolist() == [[scale]] and found.codes.tolist() == [codes]
    assert (found.minimums is None) == (minimum is None)
    if found.minimums is not None:
        assert found.minimums.tolist() == [[minimum]]
