"""The built-in self-test, here and cross-compiled for 64-bit ARM under an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edge.errors import NativeError
from edge.native import library as native

ROOT = Path(__file__).resolve().parent.parent.parent
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"


def test_this_cpu(tier):
    native.check(native.library().edge_self_test(tier.encode()))


def test_unknown_tier():
    with pytest.raises(NativeError, match="no kernels called 'altivec'"):
        native.check(native.library().edge_self_test(b"altivec"))


@pytest.fixture(scope="module")
def arm_self_test() -> Path:
    for tool in (COMPILER, EMULATOR, "cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; scripts/install-test-packages installs it")
    build = ROOT / "build" / "aarch64"
    configure = ["cmake", "-G", "Ninja", "-S", ROOT / "kernels", "-B", build, "-DCMAKE_SYSTEM_NAME=Linux"]
    configure += ["-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}"]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["ninja", "-C", build, "selftest"], check=True, capture_output=True)
    return build / "selftest"


@pytest.mark.parametrize(
    ("cpu", "tiers"),
    [
        ("max", ["neon-i8mm", "neon-dotprod", "neon", "portable"]),
        ("cortex-a76", ["neon-dotprod", "neon", "portable"]),
        ("cortex-a53", ["neon", "portable"]),
    ],
)
def test_arm(arm_self_test, cpu, tiers):
    command = [EMULATOR, "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu", arm_self_test]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines() == [f"{tier}: ok" for tier in tiers]
    assert result.returncode == 0
