"""The wheel for 64-bit ARM, installed beside its dependencies and run by an ARM Python in the emulator."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest

from edge.hub.resolve import open_bundle
from tests.conftest import alone

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / "build" / "arm64-python" / "usr" / "bin" / "python"
# Of each line the newest: what a device with glibc 2.36 installs.
PLATFORMS = (
    "manylinux_2_34_aarch64",
    "manylinux_2_28_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)
# The tiers of the two machines round differently: by about 0.02 here.
LOGPROB_TOLERANCE = 0.15


def pip_install(target: Path, *requirements: str) -> None:
    """What pip would install on the device."""
    libraries = ROOT / "build" / "arm64-python" / "usr" / "lib"
    version = max(path.name for path in libraries.glob("python3.*"))[len("python") :]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--only-binary",
        ":all:",
        "--target",
        str(target),
    ]
    platforms = [f"--platform={name}" for name in PLATFORMS]
    done = subprocess.run(
        [*command, *platforms, "--python-version", version, *requirements], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def packages(wheel: Callable[[str], Path], require: Callable[..., None], run_folder: Path) -> list[Path]:
    """The folders with the wheel and with its dependencies; those stay in build/ for the next run."""
    require("qemu-aarch64-static")
    if not PYTHON.exists():
        pytest.skip("there is no Python for 64-bit ARM; `make packages` fetches it")
    path = wheel("aarch64")
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    needed = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert len(needed) > 5
    key = hashlib.sha256("\n".join(needed).encode()).hexdigest()[:12]
    dependencies, own = ROOT / "build" / f"arm64-packages-{key}", run_folder / "arm64-wheel"
    with alone(ROOT / "build" / "locks"):
        if not dependencies.exists():
            partial = dependencies.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            pip_install(partial, *needed)
            partial.rename(dependencies)
        if not own.exists():
            pip_install(own, "--no-deps", str(path))
    return [own, dependencies]


@pytest.fixture
def edge_on_arm(packages: list[Path], tmp_path: Path) -> Callable[..., str]:
    """`edge_on_arm(*arguments)`: what the command printed."""
    program = "import sys; from edge.apps.cli.main import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, packages)), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str) -> str:
        command = [str(PYTHON), "-c", program, *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return run


def test_it_starts(edge_on_arm: Callable[..., str]):
    assert re.fullmatch(r"edge \d+\.\d+\.\d+\S*\n", edge_on_arm("--version"))


def test_the_demo_model_answers_as_here(
    edge_on_arm: Callable[..., str], smollm2: str, run_edge: Callable[..., subprocess.CompletedProcess[str]]
):
    model = str(open_bundle(smollm2).path)
    options = (
        "--temperature",
        "0",
        "--max-tokens",
        "2",
        "--activations",
        "int8",
        "--kv",
        "float16",  # int16, the default of x86 beside int8 activations, rounds otherwise
        "--logprobs",
        "2",
        "--json",
    )
    command = ("chat", model, "--prompt", "Hello", *options)
    there, here = json.loads(edge_on_arm(*command)), json.loads(run_edge(*command).stdout)
    assert there["text"] == here["text"] == "Hello!"
    for arm, x86 in zip(there["logprobs"], here["logprobs"], strict=True):
        for one, other in zip(arm["top"], x86["top"], strict=True):
            assert one["token"] == other["token"]
            assert one["logprob"] == pytest.approx(other["logprob"], abs=LOGPROB_TOLERANCE)
