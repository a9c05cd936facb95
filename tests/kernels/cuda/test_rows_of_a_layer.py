"""What is done with rows between the matrices of a layer, on a simulated device, against the network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from edge.errors import BundleError
from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.norm import added_norm, check_columns, last_norm, norm
from edge.executors.cuda.operators.swiglu import swiglu
from edge.model.network.decoder import RMSNorm
from tests.kernels.cuda.memory import fetched, sent

EPSILON = 1e-5
HALF = 2**-10
"""Relative error of a float16, of which the float32 before it may have had another last bit."""


@pytest.mark.parametrize("columns", [96, 1040])
def test_rows_are_normed(device: Device, columns: int) -> None:
    stream, weights = _floats(3, columns), _floats(columns)
    x = device.allocate(stream.size * 2)
    norm(device, sent(device, stream), sent(device, weights), x, rows=3, columns=columns, epsilon=EPSILON)
    found = fetched(device, x, stream.shape, np.float16)
    assert np.allclose(found, _normed(stream, weights), rtol=HALF, atol=1e-6)


@pytest.mark.parametrize("slices", [1, 3, 8])
def test_products_are_added_before_the_norm(device: Device, slices: int) -> None:
    rows, columns = 3, 576
    stream, weights, partials = _floats(rows, columns), _floats(columns), _floats(slices, rows, columns)
    address, x = sent(device, stream), device.allocate(stream.size * 2)
    added_norm(
        device,
        address,
        sent(device, partials),
        sent(device, weights),
        x,
        slices=slices,
        rows=rows,
        columns=columns,
        scale=0.25,
        epsilon=EPSILON,
    )
    wanted = stream + np.float32(0.25) * _summed(partials)
    assert np.array_equal(fetched(device, address, stream.shape, np.float32), wanted)
    found = fetched(device, x, stream.shape, np.float16)
    assert np.allclose(found, _normed(wanted, weights), rtol=HALF, atol=1e-6)


def test_the_last_norm_takes_chosen_rows(device: Device) -> None:
    rows, columns, wanted = 5, 96, np.array([4, 0, -1], np.int32)
    stream, weights, partials = _floats(rows, columns), _floats(columns), _floats(2, rows, columns)
    address, hidden = sent(device, stream), device.allocate(3 * columns * 4)
    x = device.allocate(3 * columns * 2)
    last_norm(
        device,
        address,
        sent(device, partials),
        sent(device, weights),
        sent(device, wanted),
        x,
        hidden,
        slices=2,
        rows=rows,
        columns=columns,
        scale=0.5,
        epsilon=EPSILON,
        logit_scale=1 / 3,
        outputs=3,
    )
    normed = _normed(stream + np.float32(0.5) * _summed(partials), weights)[[4, 0]]
    assert np.allclose(fetched(device, hidden, (3, columns), np.float32)[:2], normed, rtol=1e-5, atol=1e-6)
    assert np.allclose(fetched(device, x, (3, columns), np.float16)[:2], normed / 3, rtol=HALF, atol=1e-6)
    assert np.array_equal(fetched(device, address, stream.shape, np.float32), stream)


def test_wide_rows_are_refused() -> None:
    check_columns(8192)
    with pytest.raises(BundleError, match="hidden size of 8208"):
        check_columns(8208)


@pytest.mark.parametrize(("slices", "columns"), [(1, 1040), (4, 96)])
def test_gates_are_applied(device: Device, slices: int, columns: int) -> None:
    partials = _floats(slices, 3, 2 * columns)
    x = device.allocate(3 * columns * 2)
    swiglu(device, sent(device, partials), x, slices=slices, rows=3, columns=columns)
    gate, up = torch.from_numpy(_summed(partials)).chunk(2, -1)
    wanted = (functional.silu(gate) * up).numpy()
    assert np.allclose(fetched(device, x, (3, columns), np.float16), wanted, rtol=HALF, atol=1e-6)


def _floats(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def _summed(partials: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    total = partials[0].copy()
    for part in partials[1:]:
        total += part
    return total


def _normed(stream: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    reference = RMSNorm(stream.shape[1], EPSILON)
    reference.weight.data = torch.from_numpy(weights)
    with torch.no_grad():
        return reference(torch.from_numpy(stream)).numpy()
