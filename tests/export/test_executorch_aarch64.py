"""The program without Python, cross-compiled for 64-bit ARM and run in an emulator, on the same .pte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edge.executors.native import NativeExecutor
from edge.native import adapters
from edge.paths import cache_folder
from edge.scheme import QuantScheme
from export.artifact import export_model
from export.options import ExportOptions
from tests.export.tiny import llama_config, make_source

pytest.importorskip("executorch", reason="the package executorch is not installed")

ROOT = Path(__file__).resolve().parent.parent.parent
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
SYSTEM_ROOT = Path("/usr/aarch64-linux-gnu")
PROCESSORS = ("max", "cortex-a76", "cortex-a53")  # i8mm, dot products, neither
TOOLCHAIN = f"""
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER {COMPILER})
"""


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The folder `executorch` of its wheel for ARM, downloaded once."""
    folder = cache_folder() / "executorch-aarch64" / adapters.executorch_version()
    if not (folder / "executorch").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"),
            *("--platform", "manylinux_2_28_aarch64", "--python-version", "3.11", "--dest", str(folder)),
            f"executorch=={adapters.executorch_version()}",
        ]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("executorch's wheel for aarch64 can't be downloaded")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
            archive.extractall(folder)
    return folder / "executorch"


@pytest.mark.slow
def test_the_same_tokens_on_arm(wheel: Path, tmp_path: Path):
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (`make packages`)")
    build, toolchain = tmp_path / "build", tmp_path / "toolchain.cmake"
    toolchain.write_text(TOOLCHAIN)
    sources = ROOT / "kernels/adapters/executorch"
    for command in (
        [
            *("cmake", "-G", "Ninja", "-S", str(sources), "-B", str(build)),
            *(f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", f"-Dexecutorch_DIR={wheel / 'share/cmake'}"),
        ],
        ["cmake", "--build", str(build), "--target", "edge_executorch", "edge_executorch_operators"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    source = make_source(tmp_path, llama_config(num_hidden_layers=1), QuantScheme("int4", 32, True))
    artifact = export_model(source, ExportOptions("executorch", context=64), tmp_path / "full")
    prompt = [40, 70, 71, 72, 40, 90]
    native = NativeExecutor(source.bundle, context=64)
    cache, given, wanted = native.new_cache(), prompt, []
    for _ in range(4):
        given = [int(native.forward(cache, given).logits[-1].argmax())]
        wanted += given
    native.close()
    libraries = os.pathsep.join((str(wheel / "lib"), str(SYSTEM_ROOT / "lib")))
    for processor in PROCESSORS:
        done = subprocess.run(
            [
                *(EMULATOR, "-cpu", processor, "-L", str(SYSTEM_ROOT), "-E", f"LD_LIBRARY_PATH={libraries}"),
                *("-E", f"EDGE_EXECUTORCH_LIBRARIES={build / 'libedge_executorch_operators.so'}"),
                *(str(build / "edge_executorch"), str(artifact.model), "4", *map(str, prompt)),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        assert [int(token) for token in done.stdout.split()] == wanted, processor
