"""Which built kernels a device takes, and what is said of damaged ones. There is no GPU: images are text."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.errors import NativeError
from edge.executors.cuda import cubins
from edge.executors.cuda.cubins import FOLDER_VARIABLE, Cubins
from edge.executors.cuda.device import DeviceFacts
from edge.executors.cuda.driver import CudaDevice
from edge.executors.cuda.manifest import MANIFEST, Manifest
from tests.edge.executors.cuda.conftest import Stub

Package = Callable[..., Path]
ALL = {"sm_80": 12000, "sm_86": 12000, "sm_87": 12000, "sm_90": 12000, "sm_120": 12080, "compute_80": 12000}


def facts(architecture: int, integrated: bool = False) -> DeviceFacts:
    return DeviceFacts("A GPU", architecture, 1 << 30, 8, 99 << 10, integrated)


@pytest.mark.parametrize(
    ("architecture", "integrated", "driver", "wanted"),
    [
        (87, True, 12060, "sm_87"),
        (80, False, 12000, "sm_80"),
        (89, False, 12060, "sm_87"),  # the nearest earlier one
        (88, True, 12060, "compute_80"),  # a Jetson takes its own only
        (90, False, 12000, "sm_90"),
        (100, False, 12080, "compute_80"),
        (120, False, 12080, "sm_120"),
        (121, False, 13000, "sm_120"),
        (121, True, 13000, "compute_80"),
        (120, False, 12040, "compute_80"),  # the cubin needs a newer driver
    ],
)
def test_what_a_device_takes(package: Package, architecture: int, integrated: bool, driver: int, wanted: str):
    found = Cubins.open(package(variants=ALL))
    kernel = found.kernel("scale.f16")
    variant = found.choose(kernel, facts(architecture, integrated), driver)
    assert variant.name == wanted
    assert found.image(kernel, variant).startswith(
        b"PTX" if variant.is_ptx else f"CUBIN {wanted[3:]} ".encode()
    )


@pytest.mark.parametrize(
    ("variants", "architecture", "driver", "sentence"),
    [
        (ALL, 87, 11080, r"The NVIDIA driver knows CUDA 11\.8, and the kernels need 12\.0 or newer; update"),
        (
            ALL,
            75,
            12060,
            r"A GPU has compute capability 7\.5, and the kernels need 8\.0 or newer; use another",
        ),
        (
            {"sm_90": 12000},
            87,
            12060,
            r"A GPU has compute capability 8\.7, and the kernel scale\.f16 was built for ",
        ),
        ({}, 87, 12060, r".* was built for nothing; build the CUDA kernels again with `make cubins`\."),
    ],
)
def test_what_no_device_takes(
    package: Package, variants: dict[str, int], architecture: int, driver: int, sentence: str
):
    found = Cubins.open(package(variants=variants))
    with pytest.raises(NativeError, match=f"^{sentence}"):
        found.choose(found.kernel("scale.f16"), facts(architecture), driver)


def test_a_cubin_comes_before_ptx(package: Package):
    found = Cubins.open(package(variants={"compute_87": 12000, "sm_86": 12000}))
    assert found.choose(found.kernel("scale.f16"), facts(89), 12060).name == "sm_86"


def test_the_ptx_is_compiled_where_there_is_no_cubin(stub: Stub, package: Package):
    package(variants={"sm_87": 12000, "compute_80": 12000})
    stub.set(architecture=90)
    gpu = CudaDevice()
    gpu.launch("scale.f16", (1, 1, 1), [0, 0, 1, 1, 1.0])
    gpu.close()
    assert stub.log[0].startswith("load PTX scale")


def test_what_the_drivers_compiler_says_is_passed_on(stub: Stub, package: Package):
    package(variants={"compute_80": 12000}, ptx="nonsense")
    gpu = CudaDevice()
    with pytest.raises(
        NativeError,
        match=r"^Loading the kernel scale\.f16 as compute_80 failed: a short reason "
        r"\(CUDA_ERROR_INVALID_PTX\): line 1: a fault\.$",
    ):
        gpu.launch("scale.f16", (1, 1, 1), [0, 0, 1, 1, 1.0])
    stub.set(fail="cuModuleLoadDataEx=221")
    with pytest.raises(NativeError, match=r"libnvidia-ptxjitcompiler\.so\.1 comes with the driver"):
        gpu.launch("scale.f16", (1, 1, 1), [0, 0, 1, 1, 1.0])
    gpu.close()


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        ("cuModuleLoadDataEx=209", r"Loading the kernel scale\.f16 as sm_87 failed: .*NO_BINARY_FOR_GPU"),
        ("cuModuleGetFunction=500", r"The kernel scale\.f16 can't be used: Finding a kernel failed"),
        (
            "cuFuncSetAttribute=1",
            r"The kernel scale\.f16 can't be used: Giving a kernel its shared memory failed",
        ),
    ],
)
def test_a_kernel_that_can_not_be_loaded(stub: Stub, package: Package, fail: str, sentence: str):
    package(shared=60 << 10)
    gpu = CudaDevice()
    before = stub.live
    stub.set(fail=fail)
    with pytest.raises(NativeError, match=f"^{sentence}"):
        gpu.launch("scale.f16", (1, 1, 1), [0, 0, 1, 16, 1.0])
    assert stub.live == before
    gpu.close()


def test_a_kernel_that_was_not_built(stub: Stub, package: Package):
    package()
    gpu = CudaDevice()
    with pytest.raises(NativeError, match=r"^The kernel other\.f16 is not among those in '.*'; build"):
        gpu.launch("other.f16", (1, 1, 1), [])
    gpu.close()


def test_where_kernels_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Package):
    made = package()
    assert Cubins.open().folder == made
    monkeypatch.delenv(FOLDER_VARIABLE)
    root = tmp_path / "site"
    monkeypatch.setattr(cubins.edge, "__path__", [str(root / "edge")])
    with pytest.raises(NativeError, match=r"^The CUDA kernels are not built: run `make cubins`"):
        Cubins.open()
    (root / "build").mkdir(parents=True)
    (root / "build" / "cubins").symlink_to(made)
    with pytest.raises(NativeError, match="not built"):  # somebody else's folder
        Cubins.open()
    (root / "edge" / "kernels").mkdir(parents=True)
    (root / "edge" / "kernels" / "build.py").touch()
    assert Cubins.open().folder == root / "build" / "cubins"
    installed = root / "edge" / "executors" / "cuda" / "built"
    installed.parent.mkdir(parents=True)
    installed.symlink_to(made)
    assert Cubins.open().folder == installed


def test_a_manifest_is_read_as_it_was_written(package: Package):
    folder = package(aligned=("columns",))
    data = (folder / MANIFEST).read_bytes()
    found = Manifest.parse(data, folder / MANIFEST)
    assert found.to_json() == json.loads(data)
    assert list(found.kernels["scale.f16"].signature) == ["source", "to", "columns", "offset", "scale"]


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets what `kernels/scale.f16/warps` and the like names; removes it if value is None."""

    def edit(document: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for name in parents:
            document = document[name]
        if value is None:
            del document[last]
        else:
            document[last] = value

    return edit


KERNEL = "kernels/scale.f16"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (change("schema", 2), r"has the schema 2, this version reads 1; build the CUDA kernels again"),
        (change("kernels", None), r"lacks 'kernels'; build"),
        (change("kernels", []), r"is not what this version writes"),
        (change("variants", {"sm_87": {"driver": 12000}}), r"\(field 'images'\)"),
        (change("variants", {"../x": {"driver": 1}}), r"\(field 'variant'\)"),
        (change(f"{KERNEL}/warps", 3), r"\(field 'warps'\)"),
        (change(f"{KERNEL}/warps", True), r"\(field 'True'\)"),
        (change(f"{KERNEL}/shared", -1), r"\(field 'shared'\)"),
        (change(f"{KERNEL}/scratch", 10**9), r"\(field 'scratch'\)"),
        (change(f"{KERNEL}/symbol", "scale; exit"), r"\(field 'symbol'\)"),
        (change(f"{KERNEL}/signature", [["x", "fp64"]]), r"\(field 'signature'\)"),
        (change(f"{KERNEL}/signature", [["x", "i32"], ["x", "i32"]]), r"\(field 'signature'\)"),
        (change(f"{KERNEL}/aligned", ["to"]), r"\(field 'aligned'\)"),
        (change(f"{KERNEL}/images", {"sm_87": "00"}), r"\(field 'digest'\)"),
    ],
)
def test_manifests_that_were_changed(package: Package, edit: Callable[[dict[str, Any]], None], sentence: str):
    path = package() / MANIFEST
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(NativeError, match=sentence) as caught:
        Cubins.open()
    assert str(caught.value).startswith(f"'{path}' ") and "make cubins" in str(caught.value)


def refill(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.unlink(), r"'.*sm_87\.zip' can't be read"),
        (lambda path: path.write_bytes(b"no archive"), r"'.*sm_87\.zip' is damaged"),
        (lambda path: refill(path, {}), r"'.*sm_87\.zip' lacks scale\.f16\.cubin; build"),
        (
            lambda path: refill(path, {"scale.f16.cubin": b"other"}),
            r"scale\.f16\.cubin in '.*' is not what manifest",
        ),
        (
            lambda path: refill(path, {"scale.f16.cubin": bytes((16 << 20) + 1)}),
            r"is damaged \(it is too large\)",
        ),
    ],
)
def test_archives_that_were_changed(package: Package, spoil: Callable[[Path], None], sentence: str):
    spoil(package() / "sm_87.zip")
    found = Cubins.open()
    kernel = found.kernel("scale.f16")
    with pytest.raises(NativeError, match=sentence):
        found.image(kernel, found.manifest.variants["sm_87"])


def test_a_manifest_that_is_not_there(tmp_path: Path):
    with pytest.raises(NativeError, match=r"manifest\.json' can't be read \(No such file"):
        Cubins.open(tmp_path)
