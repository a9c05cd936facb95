"""Logits and the largest of them on a simulated device."""

from __future__ import annotations

import numpy as np
import pytest

from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.head import argmax, argmax_blocks, head
from edge.quant.scheme import QuantScheme
from tests.kernels.cuda.memory import fetched, sent
from tests.kernels.cuda.random_matrices import loaded


@pytest.mark.parametrize(("columns", "slices"), [(96, 1), (1072, 3)])
def test_logits_are_one_sum(device: Device, columns: int, slices: int) -> None:
    matrix, weights = loaded(device, QuantScheme("int4", 128), (70,), columns)
    assert matrix.slices == slices
    x = np.random.default_rng(0).standard_normal((3, columns)).astype(np.float16)
    logits, partials = device.allocate(3 * 70 * 4), device.allocate(slices * 3 * 70 * 4)
    head(device, matrix, sent(device, x), logits, partials, rows=3)
    wanted = x.astype(np.float32) @ weights.astype(np.float16).astype(np.float32).T
    found = fetched(device, logits, (3, 70), np.float32)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_lowest_of_the_largest_is_chosen(device: Device) -> None:
    vocabulary = 9000
    logits = np.random.default_rng(0).standard_normal((4, vocabulary)).astype(np.float32)
    logits[0, [4095, 8999]] = 9  # in two blocks
    logits[1, [17, 4000]] = 9
    logits[2] = -np.inf
    blocks = argmax_blocks(vocabulary)
    best, values, tokens = (device.allocate(4 * count) for count in (4, 4 * blocks, 4 * blocks))
    argmax(device, sent(device, logits), best, values, tokens, rows=4, vocabulary=vocabulary)
    assert np.array_equal(fetched(device, best, (4,), np.int32), logits.argmax(1))
