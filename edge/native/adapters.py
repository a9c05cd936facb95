"""Libraries that offer libedge's operators to host runtimes: built with libedge, or compiled at first use.

ONNX Runtime keeps its C interface stable, so its library is part of the installation. ExecuTorch does not:
its kernels are compiled against the installed wheel when they are first asked for, and kept for that version.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import edge
from edge.errors import NativeError
from edge.native import library as native
from edge.paths import cache_folder

_SUFFIX = "dylib" if sys.platform == "darwin" else "so"
_FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden")
# What ExecuTorch's own build of the wheel defines.
_DEFINITIONS = ("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL")
_SOURCES = (
    "adapters/calls.h",
    "adapters/executorch/operators.cpp",
    "include/edge.h",
    "include/edge_operators.h",
)
_COMPILE_SECONDS = 300


def onnxruntime_library() -> Path:
    """For `SessionOptions.register_custom_ops_library`; NativeError if it is missing."""
    name = f"libedge_onnxruntime.{_SUFFIX}"
    path = native.path().parent / name
    if not path.is_file():
        raise NativeError(f"{name} is missing beside libedge; build it with `pip install .`.")
    return path


def executorch_library() -> Path:
    """The kernel library to load before a method is loaded, compiled once per version of ExecuTorch.

    Raises NativeError if ExecuTorch or a C++ compiler is missing, or if its version does not fit.
    """
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise NativeError("ExecuTorch is not installed; `pip install 'minicpm-edge[export]'` brings it.")
    wheel = Path(next(iter(spec.submodule_search_locations)))
    version = importlib.metadata.version("executorch")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NativeError(
            "ExecuTorch's kernels are compiled at first use, and there is no C++ compiler: install one, "
            "or name it in $CXX."
        )
    sources = _source_folder()
    libedge = native.path().resolve()
    identity = hashlib.sha256()
    for part in (version, str(wheel), compiler, str(libedge), *_FLAGS, *_DEFINITIONS):
        identity.update(part.encode() + b"\0")
    for name in _SOURCES:
        identity.update((sources / name).read_bytes())
    target = cache_folder() / "executorch" / f"libedge_executorch-{identity.hexdigest()[:16]}.{_SUFFIX}"
    if not target.is_file():
        _compile(compiler, sources, wheel, libedge, target, version)
    return target


def _source_folder() -> Path:
    """Where the adapter's sources are: installed beside libedge, or in a checkout."""
    folders = [Path(folder) / "native" for folder in edge.__path__]
    for folder in (*folders, *(Path(folder).parent / "kernels" for folder in edge.__path__)):
        if all((folder / name).is_file() for name in _SOURCES):
            return folder
    raise NativeError("The sources of ExecuTorch's kernels are missing; install again with `pip install .`.")


def _compile(compiler: str, sources: Path, wheel: Path, libedge: Path, target: Path, version: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [
            *(compiler, *_FLAGS, *_DEFINITIONS, str(sources / "adapters/executorch/operators.cpp")),
            *(f"-I{sources / 'include'}", f"-I{wheel / 'include'}"),
            f"-I{wheel / 'include/executorch/runtime/core/portable_type/c10'}",
            *(f"-L{wheel / 'lib'}", "-lexecutorch", "-lexecutorch_threadpool", str(libedge)),
            *(f"-Wl,-rpath,{wheel / 'lib'}", f"-Wl,-rpath,{libedge.parent}", "-o", str(built)),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NativeError(f"ExecuTorch's kernels can't be compiled: {error}.") from None
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise NativeError(
                f"The kernels do not compile against ExecuTorch {version}; this version of minicpm-edge is "
                f"made for 1.5: {first}"
            )
        built.replace(target)
