"""A simulated device for every test of CUDA kernels."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from edge.kernels.simulated import SimulatedDevice


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    """Triton's interpreter."""
    if find_spec("triton") is None:  # not imported here: it reads whether to interpret when it is
        pytest.skip("triton is not installed (pip install triton==3.9.0)")
    from edge.kernels.simulated import SimulatedDevice

    opened = SimulatedDevice()
    yield opened
    opened.close()
