"""Nothing is allocated on the way of a token: the workspace is made with the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.quant.scheme import QuantScheme

ROOT = Path(__file__).resolve().parent.parent.parent
SCHEMES = [QuantScheme("int4", 32), QuantScheme("ternary", 128), QuantScheme("int8", 32), QuantScheme("f16")]


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The counter's shared library."""
    if sys.platform != "linux" or "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the counter stands in for glibc's allocator, as AddressSanitizer does")
    build = tmp_path_factory.mktemp("counter")
    configure = ["cmake", "-G", "Ninja", "-S", ROOT / "kernels", "-B", build]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["ninja", "-C", build, "allocation_counter"], check=True, capture_output=True)
    return build / "liballocation_counter.so"


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_no_allocation_after_the_first_token(counter, make_bundle, minicpm, scheme):
    bundle = make_bundle(minicpm(), scheme)
    program = Path(__file__).with_name("count_allocations.py")
    result = subprocess.run(
        [sys.executable, program, bundle.path, counter],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "LD_PRELOAD": str(counter), "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts.pop("example") == [2]  # the counter counts
    assert len(counts) >= 3 * 4 + 3
    for what, calls in counts.items():
        # A thread's first sampling makes its memory, for good.
        expected = calls[1:] if what == "sampling, greedy" else calls
        assert expected and not any(expected), f"{what}: {calls}"
