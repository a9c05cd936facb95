"""A device for every test of CUDA kernels: Triton's interpreter, or with EDGE_TEST_GPU=1 the GPU of this
machine and the kernels that `make cubins` built (`make test-cuda` does that).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from edge.executors.cuda.device import Device


@pytest.fixture(scope="session")
def gpu() -> Iterator[Device]:
    """Opened once, so that each kernel is loaded once; what tests allocate is freed at the end."""
    from edge.executors.cuda.driver import CudaDevice

    opened = CudaDevice()
    yield opened
    opened.close()


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """One that nothing has happened to."""
    if os.environ.get("EDGE_TEST_GPU"):
        yield request.getfixturevalue("gpu")
        return
    if find_spec("triton") is None:  # not imported here: it reads whether to interpret when it is
        pytest.skip("triton is not installed (pip install triton==3.9.0)")
    from edge.kernels.simulated import SimulatedDevice

    opened = SimulatedDevice()
    yield opened
    opened.close()
