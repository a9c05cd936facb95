"""Matrices of a bundle on a simulated device, and read back as float16."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import BundleError
from edge.executors.cuda.device import Device
from edge.executors.cuda.matrices import Matrix
from edge.executors.cuda.operators.dense import dequantize
from edge.quant.layout import I4, MatrixLayout
from edge.quant.scheme import QuantScheme
from tests.kernels.cuda.memory import fetched
from tests.kernels.cuda.random_matrices import REPEATED, SCHEMES, loaded


@pytest.mark.parametrize("scheme", [*SCHEMES, *REPEATED], ids=str)
def test_weights_are_those_of_the_bundle(device: Device, scheme: QuantScheme) -> None:
    matrix, weights = loaded(device, scheme, (40, 50), 272)
    out = device.allocate(matrix.dense_bytes)
    dequantize(device, matrix, out)
    found = fetched(device, out, (matrix.bands * 64, matrix.padded_columns), np.float16)
    assert np.array_equal(found[:90, :272], weights.astype(np.float16))
    assert not found[90:].any()
