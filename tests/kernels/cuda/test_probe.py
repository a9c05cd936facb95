"""Reading, on a simulated device."""

from __future__ import annotations

import numpy as np

from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.probe import BLOCK, probe
from tests.kernels.cuda.memory import fetched, sent


def test_every_word_is_read(device: Device) -> None:
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 2, BLOCK)).astype(np.int32)
    out = device.allocate(3 * BLOCK * 4)
    probe(device, sent(device, words), out, programs=3, steps=2)
    assert np.array_equal(fetched(device, out, (3, BLOCK), np.int32), words[:, 0] ^ words[:, 1])
