"""A simulated device for every test of CUDA kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from edge.kernels.simulated import SimulatedDevice


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    """Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed (pip install triton==3.9.0)")
    from edge.kernels.simulated import SimulatedDevice

    opened = SimulatedDevice()
    yield opened
    opened.close()
