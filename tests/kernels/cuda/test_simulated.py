"""Triton's interpreter in processes that use Triton otherwise."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

_PROGRAM = """
import triton.language  # as torch's compiler does
from edge.kernels.simulated import SimulatedDevice
from edge.executors.cuda.self_checks import self_check
print([wrong for _, wrong in self_check(SimulatedDevice())])
"""


def test_triton_may_have_been_imported_before() -> None:
    if find_spec("triton") is None:  # not imported here: it may read whether to interpret
        pytest.skip("triton is not installed (pip install triton==3.9.0)")
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False, cwd=root
    )
    assert done.stdout == "[None]\n", done.stderr
