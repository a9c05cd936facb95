"""Rows of the embedding on a simulated device."""

from __future__ import annotations

import numpy as np
import pytest

from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.embedding import embed
from tests.kernels.cuda.memory import fetched, sent


@pytest.mark.parametrize("columns", [40, 1024, 1100])
def test_rows_of_the_table_are_scaled(device: Device, columns: int) -> None:
    random = np.random.default_rng(columns)
    table = random.standard_normal((50, columns)).astype(np.float16)
    tokens = np.array([0, 49, 7, 7, 20], np.int32)
    stream = device.allocate(len(tokens) * columns * 4)
    embed(
        device, sent(device, table), sent(device, tokens), stream, rows=len(tokens), columns=columns, scale=12.0
    )
    found = fetched(device, stream, (len(tokens), columns), np.float32)
    assert np.array_equal(found, 12 * table[tokens].astype(np.float32))
