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
from dataclasses import dataclass
from pathlib import Path

import edge
from edge.errors import NativeError
from edge.executors.native import library as native
from edge.formats.atomic import Partial
from edge.system.paths import cache_folder

_SUFFIX = "dylib" if sys.platform == "darwin" else "so"
_FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden")
_ALL = () if sys.platform == "darwin" else ("-Wl,--no-as-needed",)
# What ExecuTorch's own build of the wheel defines.
_DEFINITIONS = ("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL")


@dataclass(frozen=True)
class _Adapter:
    """A library to compile. sources: the first is compiled, the others are its headers.

    libraries: of the wheel, in the order of the linker.
    """

    name: str
    sources: tuple[str, ...]
    libraries: tuple[str, ...]
    needs_edge: bool


_EXECUTORCH_KERNELS = _Adapter(
    "edge_executorch",
    ("adapters/executorch/operators.cpp", "adapters/calls.h", "include/edge.h", "include/edge_operators.h"),
    ("executorch", "executorch_threadpool"),
    needs_edge=True,
)
_EXECUTORCH_RUNNER = _Adapter(
    "edge_executorch_runner",
    ("adapters/executorch/runner/runner.cpp", "adapters/executorch/runner/runner.h"),
    (
        *("executorch", "executorch_threadpool"),
        *("executorch_kernels_optimized", "executorch_backend_xnnpack"),  # they register when they are loaded
    ),
    needs_edge=False,
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
    return _compiled(_EXECUTORCH_KERNELS)


def executorch_runner() -> Path:
    """The library that runs a .pte (`adapters/executorch/runner/runner.h`), compiled as the kernels are."""
    return _compiled(_EXECUTORCH_RUNNER)


def executorch_wheel() -> Path:
    """The folder of the installed executorch package; NativeError if there is none."""
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise NativeError("ExecuTorch is not installed; `pip install 'minicpm-edge[export]'` brings it.")
    return Path(next(iter(spec.submodule_search_locations)))


def executorch_version() -> str:
    """The version of the installed executorch package; NativeError if there is none."""
    executorch_wheel()
    return importlib.metadata.version("executorch")


def _compiled(adapter: _Adapter) -> Path:
    wheel, version = executorch_wheel(), executorch_version()
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NativeError(
            "ExecuTorch's kernels are compiled at first use, and there is no C++ compiler: install one, "
            "or name it in $CXX."
        )
    sources = _source_folder(adapter)
    libedge = native.path().resolve()
    identity = hashlib.sha256()
    for part in (version, str(wheel), compiler, str(libedge), *_FLAGS, *_DEFINITIONS, *adapter.libraries):
        identity.update(part.encode() + b"\0")
    for name in adapter.sources:
        identity.update((sources / name).read_bytes())
    file = f"lib{adapter.name}-{identity.hexdigest()[:16]}.{_SUFFIX}"
    target = cache_folder() / "executorch" / file
    if not target.is_file():
        command = [
            *(compiler, *_FLAGS, *_DEFINITIONS, str(sources / adapter.sources[0])),
            *(f"-I{sources / 'include'}", f"-I{wheel / 'include'}"),
            f"-I{wheel / 'include/executorch/runtime/core/portable_type/c10'}",
            *(f"-L{wheel / 'lib'}", *_ALL, *(f"-l{name}" for name in adapter.libraries)),
            f"-Wl,-rpath,{wheel / 'lib'}",
            *((str(libedge), f"-Wl,-rpath,{libedge.parent}") if adapter.needs_edge else ()),
        ]
        _compile(command, target, version)
    return target


def _source_folder(adapter: _Adapter) -> Path:
    """Where the adapter's sources are: installed beside libedge, or in a checkout."""
    folders = [Path(folder) / "executors" / "native" for folder in edge.__path__]
    for folder in (*folders, *(Path(folder).parent / "kernels" for folder in edge.__path__)):
        if all((folder / name).is_file() for name in adapter.sources):
            return folder
    raise NativeError("The sources of ExecuTorch's kernels are missing; install again with `pip install .`.")


def _compile(command: list[str], target: Path, version: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with Partial(target, folder=True) as partial:
        built = partial.path / target.name
        command = [*command, "-o", str(built)]
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
