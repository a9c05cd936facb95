"""Rows of the embedding on a simulated device."""

from __future__ import annotations

import numpy as np
import pytest

from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.embedding import embed
from edge.quant.scheme import QuantScheme
from tests.kernels.cuda.memory import fetched, sent
from tests.kernels.cuda.random_matrices import SCHEMES, loaded


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rows_of_the_table_are_scaled(device: Device, scheme: QuantScheme) -> None:
    table, weights = loaded(device, scheme, (70,), 160)
    tokens = np.array([0, 69, 9, 9, 64], np.int32)
    stream = device.allocate(len(tokens) * 160 * 4)
    embed(device, table, sent(device, tokens), stream, rows=len(tokens), scale=12.0)
    found = fetched(device, stream, (len(tokens), 160), np.float32)
    assert np.allclose(found, 12 * weights[tokens], rtol=1e-6)


def test_long_rows_have_several_programs(device: Device) -> None:
    table, weights = loaded(device, QuantScheme("int4", 32), (3,), 1040)
    stream = device.allocate(1040 * 4)
    embed(device, table, sent(device, np.array([2], np.int32)), stream, rows=1, scale=1.0)
    assert np.array_equal(fetched(device, stream, (1, 1040), np.float32), weights[2:])
