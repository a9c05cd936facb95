"""A stand-in for the CUDA driver (`stub_libcuda.c`), which is no GPU, and kernels as it reads them."""

from __future__ import annotations

import ctypes
import hashlib
import json
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.executors.cuda.cubins import FOLDER_VARIABLE, Cubins
from edge.executors.cuda.driver import CudaDevice
from edge.executors.cuda.libcuda import LIBRARY_VARIABLE
from edge.executors.cuda.manifest import MANIFEST, WIDTHS, Kernel, Manifest, Variant

SCALE = {"source": "*fp16", "to": "*fp32", "columns": "i32", "offset": "i64", "scale": "fp32"}


class Stub:
    """The library: what happened in it, and how to make it another machine."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.stub_log.restype = ctypes.c_char_p
        self._library.stub_reset()
        self._monkeypatch = monkeypatch
        monkeypatch.setenv(LIBRARY_VARIABLE, str(path))

    def set(self, **values: object) -> None:
        """`set(driver=12040)`: see the variables in the C file."""
        for name, value in values.items():
            self._monkeypatch.setenv(f"STUB_{name.upper()}", str(value))

    def unset(self, name: str) -> None:
        """Back to what it is by default."""
        self._monkeypatch.delenv(f"STUB_{name.upper()}")

    @property
    def log(self) -> list[str]:
        """A line for every kernel that was loaded or run, and every graph."""
        return bytes(self._library.stub_log()).decode().splitlines()

    @property
    def live(self) -> int:
        """Allocations, streams, events, modules and the like that are not freed."""
        return int(self._library.stub_live())

    @property
    def queued(self) -> int:
        """Copies and kernels that wait."""
        return int(self._library.stub_queued())


@pytest.fixture(scope="session")
def stub_library(require: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stand-in."""
    require("gcc")
    path = tmp_path_factory.mktemp("stub") / "libcuda.so.1"
    source = Path(__file__).with_name("stub_libcuda.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", path, source], check=True)
    return path


@pytest.fixture
def stub(stub_library: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """The stand-in as the driver of this test."""
    return Stub(stub_library, monkeypatch)


def write_package(
    folder: Path,
    *,
    variants: dict[str, int],
    shared: int = 0,
    aligned: tuple[str, ...] = (),
    ptx: str = "PTX scale 8 8 4 8 4 8 8",
) -> Path:
    """A package with one kernel `scale.f16`, symbol `scale`, of SCALE's arguments and two scratch addresses.

    variants: driver's number by name, as `{"sm_87": 12000}`.
    """
    folder.mkdir(exist_ok=True)
    made = [Variant(name, driver) for name, driver in variants.items()]
    widths = " ".join(str(WIDTHS.get(kind, 8)) for kind in SCALE.values())
    images = {
        each.name: (ptx if each.is_ptx else f"CUBIN {each.architecture} scale {widths} 8 8\n").encode()
        for each in made
    }
    kernel = Kernel(
        id="scale.f16",
        symbol="scale",
        signature=SCALE,
        aligned=aligned,
        warps=4,
        shared=shared,
        scratch=2,
        sources="0" * 64,
        images={name: hashlib.sha256(image).hexdigest() for name, image in images.items()},
    )
    for variant in made:
        with zipfile.ZipFile(folder / variant.file, "w") as archive:
            archive.writestr(variant.member(kernel.id), images[variant.name])
    manifest = Manifest({variant.name: variant for variant in made}, {kernel.id: kernel})
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json()))
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`package(**changes)`: what is found as the built kernels, see `write_package`."""

    def make(**changes: object) -> Path:
        values = {"variants": {"sm_87": 12000, "compute_80": 12000}, **changes}
        folder = write_package(tmp_path / "cubins", **values)  # type: ignore[arg-type]
        monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
        return folder

    return make


@pytest.fixture
def gpu(stub: Stub, package: Callable[..., Path]) -> Iterator[CudaDevice]:
    """The stand-in, opened, with one kernel for it."""
    opened = CudaDevice(Cubins.open(package()))
    yield opened
    opened.close()
