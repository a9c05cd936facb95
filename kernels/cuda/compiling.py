"""One entry to PTX by Triton, and that to a cubin by ptxas, with what the machine code needs of a device."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from edge.errors import EdgeError
from edge.executors.cuda.launching import THREADS
from edge.kernels.entry import Entry
from edge.kernels.targets import LOWERED_FOR, PTX, PTX_ISA, Target
from edge.kernels.usage import Usage

OPTIONS = {
    # Never a * b + c in one rounding unless a kernel says so: else the compiler decides kernel by kernel,
    # and decode and prefill, or a GPU and the interpreter, would differ.
    "enable_fp_fusion": False,
    "ptx_version": PTX_ISA,
}
# The second as Triton gives it, for a bug of CUDA 13's.
ASSEMBLER_OPTIONS = ("--fmad=false", "--regAllocOptLevel=2")
_TYPES = {"i32": "u32", "i64": "u64", "fp32": "f32"}


class CompileError(EdgeError):
    """A kernel can't be compiled, or could not be launched."""


@dataclass(frozen=True)
class Lowered:
    """An entry as PTX. symbol: its name there. shared: bytes of dynamic shared memory. scratch: addresses
    that follow its arguments. warps: of a block.
    """

    ptx: str
    symbol: str
    shared: int
    scratch: int
    warps: int


def lower(entry: Entry) -> Lowered:
    """The PTX of an entry, the same for all targets; CompileError if it does not take its signature."""
    at = {name: (place,) for place, name in enumerate(entry.function.arg_names)}
    multiples = [
        name for name, kind in entry.signature.items() if kind.startswith("*") or name in entry.aligned
    ]
    source = ASTSource(
        fn=entry.function,
        signature={name: entry.signature.get(name, "constexpr") for name in at},
        constexprs={at[name]: value for name, value in entry.constants.items()},
        attrs={at[name]: [["tt.divisibility", 16]] for name in multiples},
    )
    options = {**OPTIONS, "num_warps": entry.warps, "num_stages": entry.stages}
    if entry.registers is not None:
        options["maxnreg"] = entry.registers
    with (
        tempfile.TemporaryDirectory() as folder,
        triton.knobs.cache.scope(),
        triton.knobs.compilation.scope(),
    ):
        triton.knobs.cache.dir = folder  # ours is the only cache
        triton.knobs.compilation.disable_line_info = True
        found = triton.compile(source, target=GPUTarget("cuda", LOWERED_FOR, THREADS), options=options)
        ptx, metadata = found.asm["ptx"], found.metadata
    if metadata.global_scratch_size:
        raise CompileError(f"{entry.id} wants {metadata.global_scratch_size} bytes of scratch memory.")
    ptx, count = re.subn(rf"(?m)^\.target sm_{LOWERED_FOR}$", f".target sm_{PTX.architecture}", ptx)
    assert count == 1, ptx[:200]
    parameters = re.findall(r"\.param \.(\w+)", ptx[ptx.index(".visible .entry") : ptx.index("\n{")])
    wanted = [_TYPES.get(kind, "u64") for kind in entry.signature.values()]
    scratch = len(parameters) - len(wanted)
    if parameters != wanted + ["u64"] * scratch:
        raise CompileError(f"{entry.id} became a kernel of {parameters}, its signature says {wanted}.")
    return Lowered(ptx, metadata.name, metadata.shared, scratch, metadata.num_warps)


def assemble(ptx: str, target: Target) -> tuple[bytes, Usage]:
    """The cubin of a target; CompileError, with what ptxas says, if it takes the text for wrong."""
    with tempfile.TemporaryDirectory() as folder:
        text, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        text.write_text(ptx)
        command = [assembler(target), "-v", *ASSEMBLER_OPTIONS, f"--gpu-name=sm_{target.architecture}"]
        done = subprocess.run([*command, text, "-o", cubin], capture_output=True, text=True)
        if done.returncode:
            raise CompileError(f"ptxas refuses it for sm_{target.architecture}: {done.stderr}")
        listing = subprocess.run(
            [triton.knobs.nvidia.nvdisasm.path, "-c", "-ndf", cubin],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return cubin.read_bytes(), Usage.read(done.stderr, listing)


def assembler(target: Target) -> str:
    """The path of its ptxas."""
    found = triton.knobs.nvidia.ptxas if target.assembler == "ptxas" else triton.knobs.nvidia.ptxas_blackwell
    return str(found.path)
