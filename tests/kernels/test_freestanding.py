"""The kernels compile with clang for Android and Apple targets without the headers of any library.

No SDK is needed for that: the files of a tier use the compiler's own headers only (`freestanding.h`). What
clang makes for Android also runs here, in the self-test under an emulator.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent.parent / "kernels"
CMAKE = (KERNELS / "CMakeLists.txt").read_text()
SOURCES = KERNELS / "src" / "tiers"
TIERS = sorted(path.stem for path in SOURCES.glob("*.cpp") if path.stem != "cpu")  # which chooses one
ARM_TARGETS = ("aarch64-linux-android29", "arm64-apple-ios15", "arm64-apple-macos13")
X86_TARGETS = ("x86_64-apple-macos13",)
# As CMakeLists.txt, but compiled faster, and nothing to include or to link with.
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += [
    "-ffreestanding",
    "-nostdinc++",
    "-nostdlibinc",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-stack-protector",
]
# What a compiler may call on its own in any program.
MEMORY_FUNCTIONS = {"memcpy", "memmove", "memset", "memcmp"}


def tier_options(tier: str) -> list[str]:
    """The instruction set that CMakeLists.txt gives to a tier."""
    found = re.search(rf'tiers}}/{tier}\.cpp\s+PROPERTIES\s+COMPILE_OPTIONS\s+"([^"]*)"', CMAKE)
    return found[1].split(";") if found else []


def targets(tier: str) -> tuple[str, ...]:
    if "avx" in tier:
        return X86_TARGETS
    return ARM_TARGETS if "neon" in tier else ARM_TARGETS + X86_TARGETS


def compile_tier(tier: str, target: str, folder: Path) -> Path:
    out = folder / f"{tier}.o"
    command = ["clang++", f"--target={target}", *FLAGS, "-Wall", "-Wextra", "-Werror", *tier_options(tier)]
    command += [f"-I{KERNELS / 'include'}", f"-I{KERNELS / 'src'}"]
    command += ["-c", str(SOURCES / f"{tier}.cpp"), "-o", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return out


def undefined_symbols(path: Path) -> set[str]:
    result = subprocess.run(["nm", "--undefined-only", path], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in result.stdout.splitlines()}


def test_every_tier_has_a_target():
    assert set(CASES) >= QUICK
    assert {"portable", "neon", "neon_dotprod", "avx2", "avx512"} <= set(TIERS)
    assert tier_options("neon_dotprod") == ["-march=armv8.2-a+dotprod"]


CASES = [(tier, target) for tier in TIERS for target in targets(tier)]
# One tier for each system; the others take minutes and differ in nothing that an SDK would show.
QUICK = {
    ("neon_dotprod", "aarch64-linux-android29"),
    ("neon_i8mm", "arm64-apple-ios15"),
    ("avx512", "x86_64-apple-macos13"),
}


@pytest.mark.parametrize(
    ("tier", "target"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
    ids=str,
)
def test_compiles_without_a_library(tier, target, tmp_path, require):
    require("clang++", "nm")
    compiled = compile_tier(tier, target, tmp_path)
    if "android" in target:  # nm reads ELF objects of any CPU, but not Apple's
        assert undefined_symbols(compiled) <= MEMORY_FUNCTIONS


@pytest.mark.slow
def test_android_objects_pass_the_self_test(arm, tmp_path, require):
    require("clang++")
    objects = arm.build / "CMakeFiles"
    compiled = (objects / "edge.dir/src").glob("*/*.o")
    rest = [path for path in compiled if path.parent.name != "tiers" or path.name == "cpu.cpp.o"]
    kernels = [compile_tier(tier, ARM_TARGETS[0], tmp_path) for tier in TIERS if "avx" not in tier]
    main, program = objects / "selftest.dir/tools/selftest.cpp.o", tmp_path / "selftest"
    subprocess.run(
        [arm.compiler, main, *rest, *kernels, "-pthread", "-o", program], check=True, capture_output=True
    )
    for cpu, count in [("max", len(kernels)), ("cortex-a53", 2)]:  # the latter: portable and plain NEON
        result = subprocess.run([*arm.emulator(cpu), program], capture_output=True, text=True, timeout=120)
        lines = result.stdout.splitlines()
        assert len(lines) == count and all(line.endswith(": ok") for line in lines), result.stdout
