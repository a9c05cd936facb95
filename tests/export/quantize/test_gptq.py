"""GPTQ against the method as it is defined, and the scales that its codes belong to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge.errors import ExportError
from edge.export.quantize.gptq import gptq, invert
from edge.export.quantize.scales import best_scales
from edge.quant.packing import pack, unpack
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantizedMatrix, QuantScheme

ROWS = 11
SCHEMES = [
    QuantScheme("int4", 32),
    QuantScheme("int4", 128),
    QuantScheme("int4", 0),
    QuantScheme("int8", 32),
]


def correlated(columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights [11, columns], X^T X of inputs that depend on each other and differ in size)."""
    make = torch.Generator().manual_seed(seed)
    weights = torch.randn(ROWS, columns, generator=make)
    mixing = torch.randn(columns, columns, generator=make) + 3 * torch.eye(columns)
    x = torch.randn(6 * columns, columns, generator=make) @ mixing * torch.rand(columns, generator=make)
    return weights, x.t() @ x


def codes_of(
    weights: torch.Tensor,
    gram: torch.Tensor,
    scheme: QuantScheme,
    damping: float = 0.01,
    act_order: bool = True,
) -> QuantizedMatrix:
    return gptq(weights, invert(gram, damping=damping, act_order=act_order, name="w"), scheme, "w")


def obvious(
    weights: np.ndarray,
    gram: np.ndarray,
    scales: np.ndarray,
    scheme: QuantScheme,
    damping: float,
    act_order: bool,
) -> np.ndarray:
    """Codes counted from zero. After every column, those not yet rounded move to where the error of the
    outputs is least; the inverse is computed anew for every step.
    """
    columns = weights.shape[1]
    hessian = gram + damping * gram.diagonal().mean() * np.eye(columns)
    order = np.argsort(-gram.diagonal(), kind="stable") if act_order else np.arange(columns)
    low, high = {"int4": (-8, 7), "int8": (-127, 127)}[scheme.kind]
    left, codes = weights.copy(), np.zeros(weights.shape)
    for place, column in enumerate(order):
        rest = order[place:]
        inverse = np.linalg.inv(hessian[np.ix_(rest, rest)])
        scale = scales[:, column // (scheme.group or columns)]
        codes[:, column] = np.clip(np.rint(left[:, column] / scale), low, high)
        error = left[:, column] - codes[:, column] * scale
        left[:, rest] -= np.outer(error / inverse[0, 0], inverse[0])
    return codes


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("columns", [72, 160])
def test_codes_are_those_of_the_definition(scheme: QuantScheme, act_order: bool, columns: int):
    weights, gram = correlated(columns)
    found = codes_of(weights, gram, scheme, act_order=act_order)
    scales = found.scales.astype(np.float64)
    wanted = obvious(weights.double().numpy(), gram.double().numpy(), scales, scheme, 0.01, act_order)
    zero = 8 if scheme.kind == "int4" else 0
    # float32 against float64: a weight that lies between two codes may fall to either side and move others.
    assert (found.codes.astype(int) - zero == wanted).mean() > 0.99


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_outputs_are_closer_than_those_of_rounding(scheme: QuantScheme):
    weights, gram = correlated(160)

    def output_error(matrix: QuantizedMatrix) -> float:
        difference = weights - torch.from_numpy(matrix.dequantize())
        return float((difference @ gram * difference).sum())

    ours = output_error(codes_of(weights, gram, scheme))
    assert ours < 0.5 * output_error(quantize(weights.numpy(), scheme))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_independent_inputs_leave_rounding_to_the_nearest(scheme: QuantScheme):
    weights, _ = correlated(160)
    importance = torch.rand(160, generator=torch.Generator().manual_seed(1)) + 0.1
    found = codes_of(weights, importance.diag(), scheme)
    step = found.scales.astype(np.float32)[:, np.arange(160) // (scheme.group or 160)]
    low, high = {"int4": (-8, 7), "int8": (-127, 127)}[scheme.kind]
    inside = (weights.numpy() / step > low - 0.5) & (weights.numpy() / step < high + 0.5)
    assert (np.abs(found.dequantize() - weights.numpy())[inside] <= np.abs(step[inside]) * 0.5001).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", [72, 160])
def test_codes_and_scales_survive_packing(scheme: QuantScheme, columns: int):
    weights, gram = correlated(columns)
    found = codes_of(weights, gram, scheme)
    low, high = (0, 15) if scheme.kind == "int4" else (-127, 127)
    assert low <= found.codes.min() and found.codes.max() <= high
    assert found.scales.shape == (ROWS, scheme.groups(columns))
    again = unpack(pack(found, scheme), scheme, ROWS, columns)
    assert isinstance(again, QuantizedMatrix)
    np.testing.assert_array_equal(again.codes, found.codes)
    np.testing.assert_array_equal(again.scales, found.scales)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_scales_are_no_worse_than_those_of_rounding(scheme: QuantScheme):
    weights, gram = correlated(160)
    importance = gram.diagonal().numpy()
    plain = quantize(weights.numpy(), scheme)
    chosen = best_scales(weights, gram.diagonal(), scheme, "w")
    low, high = {"int4": (-8, 7), "int8": (-127, 127)}[scheme.kind]
    group = np.arange(160) // (scheme.group or 160)
    step = chosen.astype(np.float32)[:, group]
    rounded = np.clip(np.rint(weights.numpy() / step), low, high) * step
    for index in range(scheme.groups(160)):
        at = group == index
        ours = ((rounded - weights.numpy())[:, at] ** 2 * importance[at]).sum(1)
        theirs = ((plain.dequantize() - weights.numpy())[:, at] ** 2 * importance[at]).sum(1)
        assert (ours <= theirs * 1.0001).all()
    assert (chosen != plain.scales).any()


def test_a_larger_scale_where_codes_end_too_early():
    """-1 takes the last code, -8; then 0.99 ends at 7, unless the step is a little longer."""
    weights = torch.full((1, 32), 0.99)
    weights[0, 5] = -1.0
    (scale,) = best_scales(weights, torch.ones(32), QuantScheme("int4", 32), "w")
    assert scale == np.float16(1.05 / 8)
    importance = torch.zeros(32)
    importance[5] = 1  # nothing else matters: -1 is exact as it is
    (scale,) = best_scales(weights, importance, QuantScheme("int4", 32), "w")
    assert scale == np.float16(1 / 8)


def test_columns_without_activations_are_rounded():
    """A singular Hessian: dead inputs, and two that are always equal."""
    weights, _ = correlated(96)
    x = torch.randn(20, 96, generator=torch.Generator().manual_seed(2))  # fewer rows than columns
    x[:, 5], x[:, 70] = 0, 0
    x[:, 6] = x[:, 7]
    scheme = QuantScheme("int4", 32)
    found = codes_of(weights, x.t() @ x, scheme, damping=1e-9)
    assert np.isfinite(found.dequantize()).all()
    scale = found.scales.astype(np.float32)
    for column in (5, 70):
        difference = np.abs(found.dequantize()[:, column] - weights.numpy()[:, column])
        assert (difference <= np.abs(scale[:, column // 32]) * 8).all()
        inside = np.abs(weights.numpy()[:, column] / scale[:, column // 32]) < 7
        assert (difference[inside] <= 0.5001 * np.abs(scale[:, column // 32])[inside]).all()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("asked", "taken"), [(0.02, 0.02), (1e-3, 1e-2), (2e-5, 2e-2)])
def test_a_gram_that_cannot_be_inverted_gets_more_damping(asked: float, taken: float, act_order: bool):
    """Ten times as much, again and again; rounding has left this gram an eigenvalue below zero."""
    random = np.random.default_rng(0)
    basis, _ = np.linalg.qr(random.standard_normal((48, 48)))
    sizes = np.linspace(1, 2, 48)
    sizes[0] = -0.004 * sizes.mean()
    gram = torch.from_numpy(basis * sizes @ basis.T).float()
    found = invert(gram.clone(), damping=asked, act_order=act_order, name="w")
    order = found.order.numpy()
    assert act_order == (order.tolist() != list(range(48))) and sorted(order) == list(range(48))
    assert torch.equal(found.diagonal, gram.diagonal()) and torch.equal(found.factor, found.factor.triu())
    damped = gram.double().numpy() + taken * gram.diagonal().double().mean().item() * np.eye(48)
    wanted = np.linalg.inv(damped[np.ix_(order, order)])
    np.testing.assert_allclose(
        found.factor.T.double() @ found.factor.double(), wanted, atol=2e-3 * wanted.max()
    )


def test_a_gram_of_fewer_positions_than_channels():
    """Singular in float32, with hardly any damping asked for."""
    rows = 100 * torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    gram = rows.t() @ rows
    asked = gram + 1e-12 * gram.diagonal().mean() * torch.eye(48)
    assert int(torch.linalg.cholesky_ex(asked).info) > 0
    factor = invert(gram, damping=1e-12, act_order=True, name="w").factor
    assert bool(torch.isfinite(factor).all()) and bool((factor.diagonal() > 0).all())


def test_a_gram_that_no_damping_mends_is_refused():
    with pytest.raises(ExportError, match=r"layers\.7\.q have no usable Hessian; give another"):
        invert(-torch.eye(16), damping=0.01, act_order=True, name="layers.7.q")


def test_activations_that_are_not_finite_are_refused():
    _, gram = correlated(64)
    gram[3, 3] = float("inf")
    with pytest.raises(ExportError, match=r"layers\.7\.q"):
        invert(gram, damping=0.01, act_order=True, name="layers.7.q")
