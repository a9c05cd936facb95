"""`make cubins` as a process of its own, for Orin and as PTX; what the files say is read from their bytes.

Nothing runs on a GPU. In this process Triton may have been made an interpreter, which can't compile.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge.executors.cuda.cubins import Cubins
from edge.executors.cuda.manifest import MANIFEST
from edge.kernels import build
from edge.kernels.targets import PTX, TARGETS
from edge.kernels.usage import Usage

COMMAND = ("-m", "edge.kernels.build")
CUDA = 190  # the machine that an ELF file is for
OLD_ABI = 7  # of ELF files that drivers of CUDA 12 read


@dataclass(frozen=True)
class Builder:
    """Runs Python in a folder of its own, with arguments for the build of `embed.f16` for Orin."""

    folder: Path

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON")}
        options = ("--kernels", "embed.f16", "--architectures", "87", "--jobs", "1")
        return subprocess.run(
            [sys.executable, *command, *options],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """After a first build."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (pip install triton==3.9.0)")
    builder = Builder(tmp_path_factory.mktemp("cubins"))
    done = builder(*COMMAND)
    assert done.returncode == 0, done.stdout + done.stderr
    return builder


@pytest.fixture
def built(run: Builder) -> Path:
    """The packed kernels, after a second build that finds all of it compiled."""
    done = run(*COMMAND)
    assert done.returncode == 0 and not done.stderr, done.stderr
    head, row, last = done.stdout.splitlines()
    assert head.split()[:2] == ["kernel", "for"] and row.split()[:2] == ["embed.f16", "sm_87"]
    assert row.split()[3:5] == ["0", "0"] and last == "build/cubins: 1 kernels for sm_87, compute_80"
    return run.folder / "build" / "cubins"


def test_the_manifest_says_what_the_kernel_takes(built: Path):
    found = Cubins.open(built)
    assert {name: variant.driver for name, variant in found.manifest.variants.items()} == {
        "sm_87": 12000,
        "compute_80": 12000,
    }
    kernel = found.kernel("embed.f16")
    assert (kernel.symbol, kernel.warps, kernel.shared, kernel.scratch) == ("embed", 4, 0, 2)
    assert list(kernel.signature.items()) == [
        ("tokens", "*i32"),
        ("words", "*i32"),
        ("scales", "*fp16"),
        ("stream", "*fp32"),
        ("columns", "i32"),
        ("tiles", "i32"),
        ("factor", "fp32"),
    ]


def test_images_are_what_old_drivers_read(built: Path):
    found = Cubins.open(built)
    kernel = found.kernel("embed.f16")
    cubin = found.image(kernel, found.manifest.variants["sm_87"])
    assert cubin[:4] == b"\x7fELF" and cubin[8] == OLD_ABI
    assert int.from_bytes(cubin[18:20], "little") == CUDA
    assert cubin[48] == 87  # the low byte of the flags is the architecture
    ptx = found.image(kernel, PTX).decode()
    lines = ptx.splitlines()
    assert ".version 8.0" in lines and ".target sm_80" in lines and ".visible .entry embed(" in lines
    # No sum of a product in one rounding, neither here nor by the driver's compiler.
    assert "mul.rn.f32" in ptx and "mul.f32" not in ptx and "fma" not in ptx


def test_a_build_goes_on_and_gives_the_same_bytes(run: Builder, built: Path):
    before = {path.name: path.read_bytes() for path in built.iterdir()}
    (entry,) = (built.parent / "cubins-store").iterdir()
    for path in entry.glob("*.json"):
        path.unlink()
    done = run(*COMMAND)
    assert done.returncode == 0 and "embed.f16 compiled" in done.stderr
    assert {path.name: path.read_bytes() for path in built.iterdir()} == before


def test_what_did_not_change_is_left_out(run: Builder, built: Path):
    done = run(*COMMAND, "--changed")
    assert done.stdout == "build/cubins: 1 kernels for sm_87, compute_80\n"
    (built / MANIFEST).unlink()
    done = run(*COMMAND, "--changed")
    assert done.returncode == 0 and "embed.f16  sm_87" in done.stdout and (built / MANIFEST).is_file()


def test_a_broken_rule_fails_and_packs_nothing(run: Builder, built: Path):
    """A device with too few registers for it."""
    before = (built / MANIFEST).read_bytes()
    program = (
        "import sys; from dataclasses import replace; from edge.kernels import build, targets\n"
        "targets.TARGETS[87] = replace(targets.TARGETS[87], registers=1000)\n"
        "sys.exit(build.main())"
    )
    done = run("-c", program)
    assert done.returncode == 1 and "registers of 1000" in done.stdout
    assert done.stderr == "Error: 1 of these kernels can't be used; nothing was packed.\n"
    assert (built / MANIFEST).read_bytes() == before


@pytest.mark.parametrize(
    ("variable", "spec", "sentence"),
    [("", None, "pip install 'minicpm-edge[cubins]'"), ("1", object(), "TRITON_INTERPRET")],
)
def test_where_nothing_can_be_compiled(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    spec: object,
    sentence: str,
):
    monkeypatch.setenv("TRITON_INTERPRET", variable)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert build.main([]) == 1 and sentence in capsys.readouterr().err


SAID = """ptxas info    : Function properties for f
    {stack} bytes stack frame, {spill} bytes spill stores, {spill} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 512 bytes smem, 408 bytes cmem[0]"""
LISTING = """
        /*0000*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0010*/              @!P0 LDGSTS.E.BYPASS.LTC128B.128 [R1], desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0030*/                   LDG.E.64 R4, [R2.64] ;
        /*0040*/                   LDS.128 R4, [R2] ;
        /*0050*/                   IMMA.16832.S8.S8 R4, R8, R12, R4 ;
"""


def test_what_a_kernel_needs_is_read():
    found = Usage.read(SAID.format(stack=16, spill=4, registers=91), LISTING)
    assert found == Usage(registers=91, stack=16, spills=8, shared=512, tensor_cores=2, wide_loads=2)


@pytest.mark.parametrize(
    ("usage", "warps", "shared", "faults"),
    [
        (Usage(255, 0, 0, 0, 0, 0), 8, 0, []),
        (Usage(255, 0, 0, 0, 0, 0), 16, 0, ["131072 registers of 65536"]),
        (Usage(129, 0, 0, 0, 0, 0), 16, 0, ["69632 registers of 65536"]),  # in eights
        (Usage(32, 16, 8, 0, 0, 0), 4, 0, ["16 bytes of stack", "8 bytes of spills"]),
        (Usage(32, 0, 0, 0, 0, 0), 4, 99 << 10, []),
        (Usage(32, 0, 0, 16, 0, 0), 4, 99 << 10, ["101392 bytes of shared memory of 101376"]),
    ],
)
def test_rules(usage: Usage, warps: int, shared: int, faults: list[str]):
    assert usage.faults(TARGETS[89], warps=warps, dynamic_shared=shared) == faults
