"""The built-in self-test, here and cross-compiled for 64-bit ARM under an emulator."""

from __future__ import annotations

import subprocess

import pytest

from edge.errors import NativeError
from edge.executors.native import library as native


def test_this_cpu(tier):
    native.check(native.library().edge_self_test(tier.encode()))


def test_unknown_tier():
    with pytest.raises(NativeError, match="no kernels called 'altivec'"):
        native.check(native.library().edge_self_test(b"altivec"))


@pytest.mark.parametrize(
    ("cpu", "tiers"),
    [
        ("max", ["neon-i8mm", "neon-dotprod", "neon", "portable"]),
        pytest.param("cortex-a76", ["neon-dotprod", "neon", "portable"], marks=pytest.mark.slow),
        pytest.param("cortex-a53", ["neon", "portable"], marks=pytest.mark.slow),
    ],
)
def test_arm(arm, cpu, tiers):
    result = subprocess.run(
        [*arm.emulator(cpu), arm.build / "selftest"], capture_output=True, text=True, timeout=120
    )
    assert result.stdout.splitlines() == [f"{tier}: ok" for tier in tiers]
    assert result.returncode == 0
