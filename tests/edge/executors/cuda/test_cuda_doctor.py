"""What the doctor says of CUDA. The driver is a stand-in that computes nothing, so no GPU is checked here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge.executors.cuda import self_checks
from edge.executors.cuda.cubins import FOLDER_VARIABLE
from edge.executors.cuda.libcuda import LIBRARY_VARIABLE
from edge.executors.cuda.trial import Trial
from edge.measure.doctor import Finding, diagnose
from tests.edge.executors.cuda.conftest import Stub


def of_cuda() -> tuple[Finding, ...]:
    return diagnose(only=("CUDA",)).findings


def launch(trial: Trial) -> None:
    trial.device.launch("scale.f16", (1, 1, 1), [0, 0, 1, 1, 1.0])
    trial.device.synchronize()


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(LIBRARY_VARIABLE, "libcuda-that-is-not-there.so.1")
    (found,) = of_cuda()
    assert found.state == "note" and found.detail.startswith("There is no NVIDIA driver here")


def test_without_a_gpu(stub: Stub):
    stub.set(gpus=0)
    (found,) = of_cuda()
    assert found.state == "warning" and found.detail.startswith("The NVIDIA driver finds no GPU 0")


def test_without_kernels(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    gpu, kernels = of_cuda()
    assert gpu.state == "ok" and gpu.detail == (
        "Stub 0, 1.07 GB of memory (1.07 GB free), compute capability 8.7, driver for CUDA 12.6"
    )
    assert kernels.state == "warning" and "make cubins" in kernels.detail
    assert stub.live == 0


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [(87, "1 as sm_87, from"), (90, "1 as compute_80 (the driver compiles them at their first use), from")],
)
def test_with_kernels(
    stub: Stub, package: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, architecture: int, wanted: str
):
    """One operator that launches, and one whose values are wrong."""
    package()
    stub.set(architecture=architecture)
    monkeypatch.setattr(
        self_checks, "SELF_CHECKS", {"scale": launch, "embed": self_checks.SELF_CHECKS["embed"]}
    )
    gpu, kernels, good, bad = of_cuda()
    assert [each.state for each in (gpu, kernels, good, bad)] == ["ok", "ok", "ok", "problem"]
    assert kernels.detail.startswith(wanted)
    assert good.detail == "scale gives the right values" and bad.detail.startswith(
        "embed: The kernel repack_words.f16"
    )
    assert stub.live == 0 and len(stub.log) == 2


def test_kernels_for_other_devices(stub: Stub, package: Callable[..., Path]):
    package(variants={"sm_90": 12000})
    _, kernels = of_cuda()
    assert kernels.state == "warning" and "was built for sm_90" in kernels.detail
