"""What the libraries inside the wheels need of a system: read from the files, and what auditwheel thinks."""

from __future__ import annotations

import io
import os
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("elftools", reason="the package pyelftools is not installed")

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

from edge.executors.cuda.cubins import Cubins
from edge.hub.built_in_draft import FOLDER
from edge.train.config import CONFIGS
from tests.conftest import ROOT, alone
from tests.edge.executors.cuda.conftest import write_package

MACHINES = ("x86_64", "aarch64")
GLIBC = (2, 34)
LIBRARIES = {"libedge.so", "libedge_onnxruntime.so"}
SYSTEM = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libpthread.so.0"}
LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}
LARGEST = 5_000_000
BUILT = "edge/executors/cuda/built"


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(wheel: Callable[[str], Path], machine: str) -> Path:
    return wheel(machine)


def libraries(path: Path) -> Iterator[tuple[str, bytes]]:
    """The shared libraries of a wheel: name and bytes."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".so"):
                yield name.rpartition("/")[2], archive.read(name)


def section(content: bytes, kind: type) -> Iterator[object]:
    return (each for each in ELFFile(io.BytesIO(content)).iter_sections() if isinstance(each, kind))


def test_no_kernels_that_are_compiled_elsewhere_are_in_it(path: Path):
    """Neither their sources nor, unless they were asked for, what `make cubins` made of them."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert "edge/executors/cuda/driver.py" in names
    assert not [name for name in names if name.startswith(("edge/kernels", BUILT))]


def test_the_presets_of_training_runs_are_in_it(path: Path):
    with zipfile.ZipFile(path) as archive:
        found = {name for name in archive.namelist() if name.startswith("edge/train/configs/")}
    assert found == {f"edge/train/configs/{each.name}" for each in CONFIGS.iterdir()}


def test_the_draft_of_the_built_in_model_is_in_it(path: Path):
    with zipfile.ZipFile(path) as archive:
        found = {name for name in archive.namelist() if name.startswith("edge/hub/smollm2-135m-draft/")}
    assert found == {f"edge/hub/smollm2-135m-draft/{each.name}" for each in FOLDER.iterdir()}
    assert {"manifest.json", "weights.safetensors"} < {each.name for each in FOLDER.iterdir()}


def test_the_chat_page_is_in_it(path: Path):
    page = ROOT / "apps" / "serve" / "page"
    with zipfile.ZipFile(path) as archive:
        found = {name for name in archive.namelist() if name.startswith("edge/apps/serve/page/")}
    assert found == {f"edge/apps/serve/page/{each.name}" for each in page.iterdir()}
    assert "edge/apps/serve/page/index.html" in found


def test_cuda_kernels_are_in_a_wheel_that_was_asked_for_them(
    wheel: Callable[[str], Path], run_folder: Path, tmp_path: Path
):
    machine = platform.machine()
    plain = wheel(machine)  # what it compiles is used again
    cubins = write_package(tmp_path / "cubins", variants={"sm_87": 12000})
    (cubins / "else.txt").touch()
    command = [ROOT / "scripts/build-wheels", Path(sys.executable).parent, tmp_path / "dist", machine]
    with alone(run_folder / f"wheel-{machine}"):
        subprocess.run(command, env={**os.environ, "CUBINS": str(cubins)}, check=True, capture_output=True)
    (made,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(plain) as before, zipfile.ZipFile(made) as after:
        added = set(after.namelist()) - set(before.namelist())
        assert added == {f"{BUILT}/manifest.json", f"{BUILT}/sm_87.zip"}
        after.extractall(tmp_path / "installed", sorted(added))
    found = Cubins.open(tmp_path / "installed" / BUILT)
    assert found.image(found.kernel("scale.f16"), found.manifest.variants["sm_87"])


def test_kernels_that_are_not_there_are_not_packed(tmp_path: Path):
    command = [ROOT / "scripts/build-wheels", Path(sys.executable).parent, tmp_path, platform.machine()]
    environment = {**os.environ, "CUBINS": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "'make cubins' makes them" in done.stderr


def test_the_name_says_where_it_runs(path: Path, machine: str):
    tag = f"py3-none-manylinux_{GLIBC[0]}_{GLIBC[1]}_{machine}"
    assert path.name.endswith(f"-{tag}.whl")
    with zipfile.ZipFile(path) as archive:
        (facts,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        assert f"Tag: {tag}\n" in archive.read(facts).decode()
    program = Path(sys.executable).parent / "auditwheel"
    verdict = subprocess.run([program, "show", path], capture_output=True, text=True).stdout
    found = re.search(r'platform tag: "manylinux_2_(\d+)_(\w+)"', " ".join(verdict.split()))
    assert found and int(found[1]) <= GLIBC[1] and found[2] == machine, verdict


def test_no_symbol_is_newer_than_the_name_says(path: Path):
    """And none is of the C++ library, which is linked in."""
    seen = set()
    for name, content in libraries(path):
        for needed in section(content, GNUVerNeedSection):
            for file, versions in needed.iter_versions():
                for version in versions:
                    library, _, number = version.name.partition("_")
                    assert library in ("GLIBC", "GCC"), f"{name} needs {version.name} of {file.name}"
                    if library == "GLIBC":
                        assert tuple(map(int, number.split("."))) <= GLIBC, f"{name} needs {version.name}"
        seen.add(name)
    assert seen == LIBRARIES


def test_it_needs_nothing_but_the_c_library(path: Path, machine: str):
    allowed = SYSTEM | {LOADERS[machine], "libedge.so"}
    for name, content in libraries(path):
        (dynamic,) = section(content, DynamicSection)
        tags = {tag.entry.d_tag: tag for tag in dynamic.iter_tags()}
        needed = {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
        assert needed and needed <= allowed, (name, needed - allowed)
        if "libedge.so" in needed:
            assert tags["DT_RUNPATH"].runpath == "$ORIGIN"


def test_only_the_c_interface_is_visible(path: Path):
    for name, content in libraries(path):
        tables = [table for table in section(content, SymbolTableSection) if table.name == ".dynsym"]
        visible = {
            symbol.name
            for table in tables
            for symbol in table.iter_symbols()
            if symbol.entry.st_shndx != "SHN_UNDEF" and symbol.entry.st_info.bind != "STB_LOCAL"
        }
        assert visible, name
        assert all(each.startswith("edge_") or each == "RegisterCustomOps" for each in visible), (
            name,
            visible,
        )


def test_it_is_small_and_says_nothing_of_where_it_was_made(path: Path):
    assert path.stat().st_size < LARGEST
    root = str(Path(__file__).resolve().parents[2]).encode()
    for name, content in libraries(path):
        assert root not in content and b"/tmp/" not in content, name
        assert not [part for part in section(content, SymbolTableSection) if part.name == ".symtab"], name
