"""Linear kernels of every tier against float64 products with the dequantized weights."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import NativeError
from edge.executors.native import library as native
from edge.executors.native.operators import LayerOperators
from edge.quant import packing
from edge.quant.scheme import QuantizedMatrix, QuantScheme

SCHEMES = [
    QuantScheme("f16"),
    *(QuantScheme("int8", group) for group in (0, 32, 128, 160)),
    *(QuantScheme("int4", group) for group in (0, 32, 64, 96, 128, 256, 4096)),  # also longer than a row
    *(QuantScheme("int4", group, minimum=True) for group in (32, 256)),
    *(QuantScheme("ternary", group) for group in (0, 32, 64, 128, 256)),
]
SHAPES = [(1, 5), (17, 96), (40, 576), (33, 300)]
INT8 = QuantScheme("int8")
COUNTS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 40]
EXACT_TOLERANCE = 1e-5  # of the root mean square of the results
INTEGERS = ("int8", "int16")
# Rounding activations to int8 changes each product by at most scale / 2 * |w|: checked as that bound.
# What it takes away is at most half a scale, and int16 rounds it to int8 again.


def activations(kind: str, n: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, columns)).astype(np.float32)
    if kind == "equal":
        x[:] = -3.0
    elif kind == "zero":
        x[:] = 0.0
    elif kind == "one hot":
        x[:] = 0.0
        x[:, columns // 2] = 1e4
    elif kind == "denormal":
        x *= np.float32(1e-40)
    return x


def rounding_bound(x: np.ndarray, weights: np.ndarray, block: int, mode: str) -> np.ndarray:
    """Largest error that activations of one scale per block can cause; of int16, of two."""
    bound = np.zeros((len(x), len(weights)))
    for start in range(0, x.shape[1], block):
        part = x[:, start : start + block]
        half_step = np.abs(part).max(axis=1) / 127 / 2
        bound += half_step[:, None] * np.abs(weights[:, start : start + block]).sum(axis=1)[None]
    return bound / 254 if mode == "int16" else bound


def activation_block(scheme: QuantScheme, columns: int) -> int:
    group = scheme.group or -(-columns // 32) * 32
    return group if group <= 128 else next(block for block in (128, 64, 32) if group % block == 0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(operators, tier, random_matrix, scheme, shape):
    data = random_matrix(scheme, *shape)
    weights = packing.dequantize(data, scheme, *shape).astype(np.float64)
    matrix = operators.matrix(data, scheme, *shape)
    for n in COUNTS:
        x = activations("random", n, shape[1])
        wanted = x.astype(np.float64) @ weights.T
        scale = np.sqrt((wanted**2).mean())
        exact = operators.linear(matrix, x, "float32", tier)
        assert np.abs(exact - wanted).max() <= EXACT_TOLERANCE * scale
        for mode in INTEGERS:
            rounded = operators.linear(matrix, x, mode, tier)
            bound = EXACT_TOLERANCE * scale
            if not scheme.is_float:
                bound = bound + rounding_bound(x, weights, activation_block(scheme, shape[1]), mode)
            assert (np.abs(rounded - wanted) <= bound).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("kind", ["equal", "zero", "one hot", "denormal"])
def test_adversarial_activations(operators, tier, random_matrix, scheme, kind):
    shape = (33, 300)
    data = random_matrix(scheme, *shape)
    weights = packing.dequantize(data, scheme, *shape).astype(np.float64)
    matrix = operators.matrix(data, scheme, *shape)
    x = activations(kind, 3, shape[1])
    wanted = x.astype(np.float64) @ weights.T
    slack = EXACT_TOLERANCE * np.abs(x).astype(np.float64).max() * np.abs(weights).sum(axis=1).max()
    assert np.abs(operators.linear(matrix, x, "float32", tier) - wanted).max() <= slack + 1e-37
    for mode in INTEGERS:
        bound = slack + 1e-37
        if not scheme.is_float:
            bound = bound + 2 * rounding_bound(x, weights, activation_block(scheme, shape[1]), mode)
        assert (np.abs(operators.linear(matrix, x, mode, tier) - wanted) <= bound).all()


@pytest.mark.parametrize("mode", native.ACTIVATIONS)
def test_matrices_that_share_an_input(operators, tier, random_matrix, mode: str):
    """Kinds of one group size with other codes for zero, and other groups: each as if it were alone."""
    kinds = [("int4", 32, True), ("int4", 32, False), ("int8", 32, False), ("ternary", 32, False)]
    others = [("int8", 0, False), ("int4", 64, True), ("f16", 0, False)]
    schemes = [QuantScheme(*kind) for kind in [*kinds, *others]]
    data = [random_matrix(scheme, 21, 96) for scheme in schemes]
    matrices = [operators.matrix(d, scheme, 21, 96) for d, scheme in zip(data, schemes, strict=True)]
    run = LayerOperators(operators.pool.parallel, operators.buffer.scratch, tier)
    x, norm = activations("random", 11, 96), np.ones(96, np.float32)
    together = run.rms_norm_linear(x, norm, 1e-5, 1.0, matrices, mode)
    for i, matrix in enumerate(matrices):
        alone = run.rms_norm_linear(x, norm, 1e-5, 1.0, [matrix], mode)
        np.testing.assert_array_equal(together[:, 21 * i : 21 * i + 21], alone)


@pytest.mark.parametrize("mode", native.ACTIVATIONS)
def test_a_gate_of_another_kind(operators, tier, random_matrix, mode: str):
    """Floats take one row for each token where integers may take two."""
    run = LayerOperators(operators.pool.parallel, operators.buffer.scratch, tier)
    norm, schemes = np.ones(96, np.float32), [QuantScheme("f16"), QuantScheme("int4", 32)]
    data = [random_matrix(scheme, 37, 96) for scheme in schemes]
    gate, up = (operators.matrix(d, scheme, 37, 96) for d, scheme in zip(data, schemes, strict=True))
    for n in (1, 13, 20, 150):
        x = activations("random", n, 96)
        for first, second in ((gate, up), (up, gate)):
            found = run.rms_norm_swiglu(x, norm, 1e-5, first, second, mode)
            g, u = (run.rms_norm_linear(x, norm, 1e-5, 1.0, [each], mode) for each in (first, second))
            np.testing.assert_allclose(found, g / (1 + np.exp(-g)) * u, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 9])
def test_halves_are_rounded_to_even(operators, tier, n: int):
    """Codes of 0.5, 1.5, ... of the largest size 127; the matrix hands each column on."""
    codes = QuantizedMatrix(INT8, np.eye(64, dtype=np.int8), np.ones((64, 1), np.float16))
    data = packing.pack(codes, INT8)
    matrix = operators.matrix(data, INT8, 64, 64)
    x = np.concatenate([[127, -127], np.arange(-31, 31) + 0.5]).astype(np.float32)
    found = operators.linear(matrix, np.tile(x, (n, 1)), "int8", tier)
    np.testing.assert_allclose(found, np.tile(np.rint(x), (n, 1)), atol=1e-4)


@pytest.mark.parametrize("kind", ["int4", "ternary"])
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_codes_overflow_nothing(operators, tier, kind: str, group: int, sign: int):
    """All weights and activations at their ends, where sums in 16 bits are closest to overflow."""
    scheme, columns = QuantScheme(kind, group), 256
    code = 15 if kind == "int4" else 2
    codes, largest = np.full((16, columns), code, np.uint8), code - int(scheme.zero)
    matrix = QuantizedMatrix(scheme, codes, np.ones((16, columns // group), np.float16))
    data = packing.pack(matrix, scheme)
    for n in (1, 2, 4, 5, 9, 40):
        x = np.full((n, columns), 127.0 * sign, np.float32)
        for mode in INTEGERS:
            found = operators.linear(operators.matrix(data, scheme, 16, columns), x, mode, tier)
            assert (found == 127.0 * sign * largest * columns).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("mode", native.ACTIVATIONS)
def test_a_token_alone_equals_the_token_in_a_batch(operators, tier, random_matrix, scheme, mode):
    shape = (40, 576)
    data = random_matrix(scheme, *shape)
    matrix = operators.matrix(data, scheme, *shape)
    x = activations("random", 40, shape[1])
    together = operators.linear(matrix, x, mode, tier)
    for n in COUNTS:
        assert np.array_equal(operators.linear(matrix, x[:n], mode, tier), together[:n])


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.group in (0, 32, 256)], ids=str)
def test_pieces_of_many_tiles(operators, tier, random_matrix, scheme):
    """A thread takes four tiles of 16 rows here, and reads two of them at a time; the last piece is 3."""
    shape = (549, 64)
    data = random_matrix(scheme, *shape)
    weights = packing.dequantize(data, scheme, *shape).astype(np.float64)
    matrix = operators.matrix(data, scheme, *shape)
    for n in (1, 2, 7, 8, 13):
        x = activations("random", n, shape[1])
        wanted = x.astype(np.float64) @ weights.T
        bound = EXACT_TOLERANCE * np.sqrt((wanted**2).mean())
        assert (np.abs(operators.linear(matrix, x, "float32", tier) - wanted) <= bound).all()
        for mode in INTEGERS:
            within = bound
            if not scheme.is_float:
                within = bound + rounding_bound(x, weights, activation_block(scheme, shape[1]), mode)
            assert (np.abs(operators.linear(matrix, x, mode, tier) - wanted) <= within).all()


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.group == 0 and not s.is_float], ids=str)
@pytest.mark.parametrize("mode", INTEGERS)
def test_rows_longer_than_the_kernels_buffers(operators, tier, random_matrix, scheme, mode):
    shape = (19, 4700)
    data = random_matrix(scheme, *shape)
    weights = packing.dequantize(data, scheme, *shape).astype(np.float64)
    matrix = operators.matrix(data, scheme, *shape)
    x = activations("random", 150, shape[1])
    together = operators.linear(matrix, x, mode, tier)
    wanted = x.astype(np.float64) @ weights.T
    bound = EXACT_TOLERANCE * np.sqrt((wanted**2).mean()) + rounding_bound(
        x, weights, activation_block(scheme, shape[1]), mode
    )
    assert (np.abs(together - wanted) <= bound).all()
    for n in (1, 8, 9):
        assert np.array_equal(operators.linear(matrix, x[:n], mode, tier), together[:n])


@pytest.mark.parametrize("scheme", [QuantScheme("f32"), *SCHEMES], ids=str)
def test_dequantize_row(operators, random_matrix, scheme):
    shape = (33, 300)
    data = random_matrix(scheme, *shape)
    weights = packing.dequantize(data, scheme, *shape)
    matrix = operators.matrix(data, scheme, *shape)
    for row in (0, 15, 16, 32):
        assert np.array_equal(operators.dequantize_row(matrix, row), weights[row])


def test_rms_norm(operators, tier):
    rng = np.random.default_rng(0)
    for size in (1, 15, 16, 576, 1000):
        x = rng.standard_normal((3, size)).astype(np.float32)
        weight = rng.standard_normal(size).astype(np.float32)
        wanted = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-5) * weight * 0.25
        got = operators.rms_norm(x, weight, 1e-5, 0.25, tier)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes": 64}, "takes"),
        ({"rows": 0}, "impossible shape"),
        ({"columns": -1}, "impossible shape"),
        ({"kind": 9}, "unknown kind"),
        ({"group": 33}, "multiple of 32"),
        ({"kind": 2, "minimum": 1}, "only int4"),
        ({"data": None}, "takes"),
    ],
)
def test_wrong_matrices_are_refused(operators, tier, random_matrix, change, message):
    scheme = QuantScheme("int4", 32)
    data = random_matrix(scheme, 17, 96)
    matrix = operators.matrix(data, scheme, 17, 96)
    for name, value in change.items():
        setattr(matrix, name, value)
    with pytest.raises(NativeError, match=message):
        operators.linear(matrix, np.zeros((1, 96), np.float32), "int8", tier)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("mode", native.ACTIVATIONS)
def test_infinities_do_not_vanish(operators, tier, random_matrix, scheme, bad, mode):
    shape = (17, 300)
    data = random_matrix(scheme, *shape)
    matrix = operators.matrix(data, scheme, *shape)
    x = activations("random", 2, shape[1])
    x[1, 130] = bad
    y = operators.linear(matrix, x, mode, tier)
    assert np.isfinite(y[0]).all()
    assert not np.isfinite(y[1]).any()  # a weight of zero times infinity is NaN


def test_rms_norm_of_many_rows(operators, tier):
    """On both threads, each with memory of its own."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 2003)).astype(np.float32)
    weight = rng.standard_normal(2003).astype(np.float32)
    wanted = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True)) * weight
    np.testing.assert_allclose(operators.rms_norm(x, weight, 1e-9, 1.0, tier), wanted, rtol=1e-5, atol=1e-6)


def test_rms_norm_of_an_overflow_is_not_zero(operators, tier):
    x = np.full((1, 32), 1e30, np.float32)
    assert np.isnan(operators.rms_norm(x, np.ones(32, np.float32), 1e-5, 1.0, tier)).all()


def test_unknown_tier_is_refused(operators, random_matrix):
    scheme = QuantScheme("int4", 32)
    data = random_matrix(scheme, 17, 96)
    with pytest.raises(NativeError, match="no kernels called 'mmx'"):
        operators.linear(operators.matrix(data, scheme, 17, 96), np.zeros((1, 96), np.float32), "int8", "mmx")
