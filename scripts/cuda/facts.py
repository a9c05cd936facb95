"""What the GPU is, what is loaded on it, and whether each operator's own small check is right."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter

from edge.executors.cuda.driver import CudaDevice
from edge.executors.cuda.manifest import cuda_version
from edge.executors.cuda.self_checks import self_check

from .devices import Watched
from .report import Report

_ASKED = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")


def tell(device: Watched, report: Report) -> None:
    """Facts, then the checks of `edge doctor`."""
    report.measured("device", **vars(device.facts), free=device.free_memory)
    if isinstance(device.device, CudaDevice):
        gpu = device.device
        chosen = Counter(
            gpu.cubins.choose(kernel, gpu.facts, gpu.driver_version).name
            for kernel in gpu.cubins.manifest.kernels.values()
        )
        driver = cuda_version(gpu.driver_version)
        report.measured("kernels", chosen=dict(chosen), driver_cuda=driver, folder=str(gpu.cubins.folder))
        report.measured("clocks", **_clocks())
    for name, wrong in self_check(device):
        report.check(f"self check {name}", wrong is None, wrong=wrong)


def _clocks() -> dict[str, str]:
    """By nvidia-smi, where it is installed; Jetsons have none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    asked = [program, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_ASKED, (each.strip() for each in done.stdout.split(",")), strict=False))
