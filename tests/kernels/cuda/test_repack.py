"""Matrices of a bundle on a simulated device, read back as float16."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import BundleError
from edge.executors.cuda.device import Device
from edge.executors.cuda.matrices import Matrix, variant_of
from edge.executors.cuda.operators.dense import dequantize
from edge.executors.cuda.operators.rows import take_rows
from edge.quant.scheme import QuantScheme
from tests.kernels.cuda.memory import fetched, sent
from tests.kernels.cuda.random_matrices import REPEATED, SCHEMES, loaded


@pytest.mark.parametrize("scheme", [*SCHEMES, *REPEATED], ids=str)
def test_weights_are_those_of_the_bundle(device: Device, scheme: QuantScheme) -> None:
    matrix, weights = loaded(device, scheme, (40, 30), 160)
    found = _read(device, matrix)
    assert np.array_equal(found[:70, :160], weights.astype(np.float16))
    assert not found[70:].any()


@pytest.mark.parametrize(
    "scheme", [QuantScheme("int4", 32, minimum=True), QuantScheme("ternary"), QuantScheme("f16")], ids=str
)
def test_chosen_rows_are_a_matrix(device: Device, scheme: QuantScheme) -> None:
    matrix, weights = loaded(device, scheme, (90,), 160)
    ids = np.random.default_rng(0).permutation(90)[:70].astype(np.int32)
    chosen = Matrix(variant_of(scheme.packing), 70, 160)
    chosen = chosen.at(device.allocate(chosen.size))
    take_rows(device, matrix, sent(device, ids), chosen)
    assert np.array_equal(_read(device, chosen)[:70, :160], weights[ids].astype(np.float16))


def test_odd_columns_are_refused() -> None:
    with pytest.raises(BundleError, match="multiples of 16"):
        Matrix(QuantScheme("int4", 32).packing, 64, 40)


def _read(device: Device, matrix: Matrix) -> np.ndarray:
    out = device.allocate(matrix.dense_bytes)
    dequantize(device, matrix, out)
    return fetched(device, out, (matrix.bands * 64, matrix.padded_columns), np.float16)
