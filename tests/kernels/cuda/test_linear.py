"""Products on a simulated device: against float32, and bit for bit among numbers of rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from edge.executors.cuda.device import Device
from edge.executors.cuda.matrices import Matrix
from edge.executors.cuda.operators.dense import FROM_ROWS, product
from edge.executors.cuda.operators.linear import linear
from edge.quant.scheme import QuantScheme
from tests.kernels.cuda.memory import fetched, sent
from tests.kernels.cuda.random_matrices import SCHEMES, loaded

TOLERANCE = 1e-5
"""Of the largest product: the reference takes the same float16 weights and sums them in another order."""


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_products_of_every_kind(device: Device, scheme: QuantScheme) -> None:
    """With each size of tiles of rows."""
    matrix, weights = loaded(device, scheme, (70,), 160)
    x = _inputs(17, 160)
    found = _products(device, matrix, x)
    _check(found, x, weights)
    for rows in (3, 16):
        assert np.array_equal(_products(device, matrix, x[:rows]), found[:, :rows])


@pytest.mark.parametrize(
    "scheme", [QuantScheme("int4", 32), QuantScheme("ternary"), QuantScheme("f16")], ids=str
)
def test_a_row_gives_the_same_among_any_others(device: Device, scheme: QuantScheme) -> None:
    matrix, weights = loaded(device, scheme, (50, 50), 1072)
    assert matrix.slices == 3
    x = _inputs(65, 1072)
    all_rows = _products(device, matrix, x)
    _check(all_rows, x, weights)
    for rows in (1, 16, 17, 64):
        assert np.array_equal(_products(device, matrix, x[:rows]), all_rows[:, :rows])
    assert np.array_equal(_products(device, matrix, x[40:43]), all_rows[:, 40:43])


@pytest.mark.parametrize(("columns", "slices"), [(160, 1), (1072, 3)])
def test_many_rows_go_through_float16(device: Device, columns: int, slices: int) -> None:
    matrix, weights = loaded(device, QuantScheme("int8", 64), (130,), columns)
    x, workspace = _inputs(FROM_ROWS + 1, columns), device.allocate(matrix.dense_bytes)
    out = device.allocate(len(x) * matrix.rows * 4)
    assert product(device, matrix, sent(device, x), out, workspace, rows=len(x)) == 1
    found = fetched(device, out, (len(x), matrix.rows), np.float32)
    _check(found[None], x, weights)
    assert product(device, matrix, sent(device, x[:5]), out, workspace, rows=5) == slices
    parts = fetched(device, out, (slices, 5, matrix.rows), np.float32)
    assert np.array_equal(found[:5], sum(parts[1:], parts[0]))


@pytest.mark.parametrize(
    ("rows", "columns", "slices"),
    [
        (4096, 4096, 4),  # o of the 8B
        (4096, 16384, 4),  # down
        (32768, 4096, 1),  # gate and up
        (1024, 1024, 2),  # o of the 0.5B
        (1024, 4096, 8),
        (576, 576, 2),
        (73448, 4096, 1),
        (64, 96, 1),
    ],
)
def test_slices_cover_the_columns(rows: int, columns: int, slices: int) -> None:
    matrix = Matrix(QuantScheme("int4", 32).packing, rows, columns)
    assert matrix.slices == slices
    assert (slices - 1) * matrix.slice_chunks < matrix.chunks <= slices * matrix.slice_chunks


def _inputs(rows: int, columns: int) -> npt.NDArray[np.float16]:
    return np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float16)


def _products(device: Device, matrix: Matrix, x: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    rows = len(x)
    out = device.allocate(matrix.slices * rows * matrix.rows * 4)
    linear(device, matrix, sent(device, x), out, rows=rows)
    return fetched(device, out, (matrix.slices, rows, matrix.rows), np.float32)


def _check(
    found: npt.NDArray[np.float32], x: npt.NDArray[np.float16], weights: npt.NDArray[np.float32]
) -> None:
    halves = torch.from_numpy(weights).half().float()
    wanted = functional.linear(torch.from_numpy(x).float(), halves).numpy()
    assert np.abs(found.sum(0) - wanted).max() < TOLERANCE * np.abs(wanted).max()
