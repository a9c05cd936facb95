"""Runs the compiler, with the flags that the library is built with, and llvm-mca."""

from __future__ import annotations

import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_KERNELS = ROOT / "kernels"
_SOURCES = {  # of the tiers
    "neon": "neon",
    "neon-dotprod": "neon_dotprod",
    "neon-i8mm": "neon_i8mm",
    "avx512vnni": "avx512",
}
_OLDEST = 16  # of LLVM: the first with all the models
_TURNS = 100


class ToolError(Exception):
    """A sentence about a tool that is missing or failed."""


@cache
def llvm_mca() -> str:
    """The newest llvm-mca here. Raises ToolError."""
    names = ("llvm-mca", *(f"llvm-mca-{version}" for version in range(_OLDEST, 30)))
    found = {_version(name): name for name in names if shutil.which(name)}
    if not found or max(found) < _OLDEST:
        raise ToolError(f"llvm-mca of LLVM {_OLDEST} or newer is not installed: `apt-get install llvm-19`.")
    return found[max(found)]


def llvm_version() -> str:
    """For instance `19.1.7`."""
    return _version_text(llvm_mca())


def compiler(tier: str) -> str:
    """The C++ compiler for a tier's machine. Raises ToolError."""
    machine = "aarch64" if tier.startswith("neon") else "x86_64"
    name = "g++" if platform.machine() in (machine, "arm64") else f"{machine}-linux-gnu-g++"
    if shutil.which(name) is None:
        raise ToolError(
            f"{name} is not installed: `apt-get install g++-{machine.replace('_', '-')}-linux-gnu`."
        )
    return name


def compiler_version(tier: str) -> str:
    """For instance `aarch64-linux-gnu-g++ 12.2.0`."""
    return f"{compiler(tier)} {_run([compiler(tier), '-dumpfullversion']).strip()}"


def assembly(tier: str, folder: Path) -> str:
    """The loops of a tier in assembly; folder: for what is made on the way."""
    build = folder / compiler(tier)
    commands = build / "compile_commands.json"
    if not commands.exists():
        machine = "aarch64" if tier.startswith("neon") else "x86_64"
        system = ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={machine}"]
        chosen = [f"-DCMAKE_CXX_COMPILER={compiler(tier)}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
        beside = Path(sys.executable).with_name("cmake")
        cmake = str(beside) if beside.exists() else "cmake"
        _run([cmake, "-S", str(_KERNELS), "-B", str(build), *system, *chosen])
    source = f"tiers/{_SOURCES[tier]}.cpp"
    (command,) = (
        each["command"]
        for each in json.loads(commands.read_text(encoding="utf-8"))
        if each["file"].endswith(source)
    )
    flags = [word for word in shlex.split(command)[1:] if word.startswith("-") and word not in ("-o", "-c")]
    out = folder / f"{tier}.s"
    loops = str(_KERNELS / "tools" / "kernel_loops.cpp")
    _run([compiler(tier), *flags, f'-DEDGE_TIER="{source}"', "-S", "-o", str(out), loops])
    return out.read_text(encoding="utf-8")


@cache
def cycles(instructions: tuple[str, ...], model: str, tier: str) -> float:
    """Of one turn, on average over many. Everything that is loaded is in the nearest cache."""
    neon = tier.startswith("neon")
    target = (
        ["-mtriple=aarch64-linux-gnu", "-mattr=+dotprod,+i8mm"] if neon else ["-mtriple=x86_64-linux-gnu"]
    )
    command = [llvm_mca(), *target, f"-mcpu={model}", f"-iterations={_TURNS}", "-instruction-info=false"]
    told = _run(command, "\n".join(instructions) + "\n")
    found = re.search(r"Total Cycles:\s+(\d+)", told)
    if found is None:
        raise ToolError(f"llvm-mca told no cycles: {told[:200]}")
    return int(found[1]) / _TURNS


def _version(name: str) -> int:
    return int(_version_text(name).partition(".")[0])


def _version_text(name: str) -> str:
    found = re.search(r"LLVM version (\d+[\d.]*)", _run([name, "--version"]))
    return found[1] if found else "0"


def _run(command: Sequence[str], text: str | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise ToolError(f"{command[0]} is not installed: `make setup packages` installs it.")
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"`{Path(command[0]).name}` failed: {done.stderr.strip()[:1000]}")
    return done.stdout
