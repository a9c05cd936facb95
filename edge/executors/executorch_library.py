"""The C++ runner of exported .pte files, compiled at first use against the installed executorch wheel.

The wheel promises no binary interface, so the library is kept in the cache folder under the wheel's version and the
sources' checksum. It links the wheel's C++ libraries only: neither torch nor executorch's Python modules are loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from edge.atomic import partial_path
from edge.errors import EdgeError
from edge.paths import cache_folder

PACKAGE = "executorch"
_ADVICE = "install it with `pip install 'minicpm-edge[export]'`"
_DIMENSIONS = 2


class Input(ctypes.Structure):
    """`edge_et_input`: an int64 tensor."""

    _fields_ = (("data", c_void_p), ("dimensions", c_int32), ("sizes", c_int32 * _DIMENSIONS))


class Output(ctypes.Structure):
    """`edge_et_output`: where a result goes; no data: not wanted."""

    _fields_ = (("data", c_void_p), ("room", c_uint64), ("bytes", c_uint64))


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "edge_et_error": (c_char_p, ()),
    "edge_et_threads": (c_int, ()),
    "edge_et_open": (c_int, (c_void_p, c_uint64, c_int32, POINTER(c_void_p))),
    "edge_et_close": (None, (c_void_p,)),
    "edge_et_has": (c_int, (c_void_p, c_char_p)),
    "edge_et_constant": (c_int, (c_void_p, c_char_p, POINTER(c_int64), c_int32, POINTER(c_int32))),
    "edge_et_cache_create": (c_int, (c_void_p, POINTER(c_void_p))),
    "edge_et_cache_destroy": (None, (c_void_p,)),
    "edge_et_run": (c_int, (c_void_p, c_char_p, POINTER(Input), c_int32, POINTER(Output), c_int32)),
}


def runtime_version() -> str:
    """The version of the installed executorch package; EdgeError if there is none."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise EdgeError(f"The executorch executor needs the package executorch; {_ADVICE}.") from None


@functools.cache
def library() -> ctypes.CDLL:
    """The runner with the operators of the full flavour; EdgeError if it can't be compiled."""
    opened = ctypes.CDLL(str(build() / "libedge_executorch_runner.so"))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(opened, name)
        function.restype, function.argtypes = result, arguments
    return opened


def check(status: int) -> None:
    """Raise EdgeError with the runner's sentence if a call failed."""
    if status != 0:
        raise EdgeError(library().edge_et_error().decode())


def build() -> Path:
    """The folder with the compiled libraries and the program `edge_executorch`."""
    version, sources = runtime_version(), source_folder()
    digest = hashlib.sha256(version.encode())
    for path in sorted(sources.rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    folder = cache_folder() / "executorch" / f"{version}-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    making = partial_path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        configure(sources / "adapters" / "executorch" / "runner", making)
        _run([_tool("cmake"), "--build", str(making)])
        making.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been faster
            raise EdgeError(f"Cannot compile the ExecuTorch runner: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def configure(sources: Path, folder: Path, *options: str) -> None:
    """Run cmake for the project in `sources`, found the installed wheel."""
    where = wheel_folder() / "share" / "cmake"
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=_tool_path()) else []
    _run(
        [
            _tool("cmake"),
            *("-S", str(sources), "-B", str(folder), f"-Dexecutorch_DIR={where}", *generator, *options),
        ]
    )


def wheel_folder() -> Path:
    """The folder of the installed executorch package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EdgeError(f"The executorch executor needs the package executorch; {_ADVICE}.")
    return Path(next(iter(spec.submodule_search_locations)))


def source_folder() -> Path:
    """The folder `kernels`: of the repository, or as it was installed with the package."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here.parent / "kernels", here / "native" / "kernels"):
        if (folder / "adapters" / "executorch").is_dir():
            return folder
    raise EdgeError("The C++ sources of the ExecuTorch runner are missing; install minicpm-edge again.")


def _tool_path() -> str:
    # cmake and ninja may be packages of this Python that are not on the path.
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))


def _tool(name: str) -> str:
    found = shutil.which(name, path=_tool_path())
    if found is None:
        raise EdgeError(
            f"Compiling the ExecuTorch runner needs {name}; install it with `pip install {name}`."
        )
    return found


def _run(command: list[str]) -> None:
    environment = {**os.environ, "PATH": _tool_path()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "rror" in line]
        reason = lines[0].strip() if lines else f"exit code {done.returncode}"
        raise EdgeError(f"The ExecuTorch runner can't be compiled: {reason}")
