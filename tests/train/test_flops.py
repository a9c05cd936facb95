"""The peak that a training run is held to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from edge.train import flops


def test_the_first_product_alone_tells_no_peak(monkeypatch: pytest.MonkeyPatch):
    """It makes the kernel, which may take longer than all the time that is given."""
    products = [(0.0, 0.0, 100.0), (100.0, 100.0, 102.0), (102.0, 102.0, 104.0)]  # asked, begun, over
    now = iter([0.0, *(each for product in products for each in product), 104.0])
    monkeypatch.setattr(flops, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    peak = flops.measured_peak.__wrapped__(torch.device("cpu"), torch.float32)
    assert peak == pytest.approx(2 * 1024**3 / 2)
