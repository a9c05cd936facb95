"""The program without Python, cross-compiled for 64-bit ARM and run in an emulator, on the same .pte."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edge.executors import adapters
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.quant.scheme import QuantScheme
from edge.system.paths import cache_folder
from tests.export.tiny import llama_config, make_source
from tests.steps import forward

pytest.importorskip("executorch", reason="the package executorch is not installed")

ROOT = Path(__file__).resolve().parent.parent.parent
SYSTEM_ROOT = Path("/usr/aarch64-linux-gnu")
PROCESSORS = ("max", "cortex-a76", "cortex-a53")  # i8mm, dot products, neither
TOOLCHAIN = """
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER {compiler})
"""


@pytest.fixture(scope="module")
def executorch_wheel() -> Path:
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


@pytest.fixture(scope="module")
def build(arm, executorch_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CMake project of `kernels/adapters/executorch`, with the libedge of the other ARM tests."""
    folder = tmp_path_factory.mktemp("arm")
    toolchain = folder / "toolchain.cmake"
    toolchain.write_text(TOOLCHAIN.format(compiler=arm.compiler))
    options = {
        "CMAKE_TOOLCHAIN_FILE": toolchain,
        "executorch_DIR": executorch_wheel / "share/cmake",
        "EDGE_LIBRARY": arm.build / "libedge.so",
    }
    place = ["-G", "Ninja", "-S", str(ROOT / "kernels/adapters/executorch"), "-B", str(folder)]
    for command in (
        ["cmake", *place, *(f"-D{name}={value}" for name, value in options.items())],
        ["cmake", "--build", str(folder), "--target", "edge_executorch", "edge_executorch_operators"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("portable", [False, True], ids=["full", "portable"])
def test_the_same_tokens_on_arm(arm, build: Path, executorch_wheel: Path, tmp_path: Path, portable: bool):
    scheme = QuantScheme("int4", 32, True)
    # Untied: a tied head answers with one token over and over.
    config = llama_config(num_hidden_layers=1, tie_word_embeddings=False)
    source = make_source(tmp_path, config, scheme)
    options = ExportOptions("executorch", context=64, portable=portable)
    artifact = export_model(source, options, tmp_path / "folder")
    here = open_executor(source.bundle, RunOptions(context=64, kv_type="float16"))
    if portable:
        here.close()
        here = open_executor(artifact)
    prompt = [40, 70, 71, 72, 40, 90]
    cache, given, wanted = here.new_cache(), prompt, []
    for _ in range(4):
        given = [int(forward(here, cache, given).logits[-1].argmax())]
        wanted += given
    here.close()
    assert len(set(wanted)) > 2
    libraries = os.pathsep.join((str(executorch_wheel / "lib"), str(SYSTEM_ROOT / "lib")))
    environment = {
        "LD_LIBRARY_PATH": libraries,
        "EDGE_EXECUTORCH_LIBRARIES": build / "libedge_executorch_operators.so",
    }
    for processor in PROCESSORS:
        settings = [part for name, value in environment.items() for part in ("-E", f"{name}={value}")]
        program = [str(build / "edge_executorch"), str(artifact.model), "4", *map(str, prompt)]
        command = [*arm.emulator(processor), *settings, *program]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert [int(token) for token in done.stdout.split()] == wanted, processor
