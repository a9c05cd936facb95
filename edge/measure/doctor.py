"""Looks at this machine and installation, and says what is wrong and how to mend it.

Every check is a function that returns findings; none of them changes anything.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from edge.errors import BundleError, EdgeError
from edge.executors.registry import EXECUTORS, NATIVE
from edge.formats.bundle.reader import Bundle
from edge.hub.built_in import BUILT_IN
from edge.hub.store import cached_models
from edge.measure.profile import machine
from edge.system.memory import available_memory
from edge.system.paths import cache_folder
from edge.system.units import format_bytes

if TYPE_CHECKING:
    from edge.executors.cuda.driver import CudaDevice

State = Literal["ok", "note", "warning", "problem"]

_PACKAGES = {
    "numpy": "everything",
    "tokenizers": "tokenizer.json",
    "sentencepiece": "tokenizer.model",
    "protobuf": "tokenizer.model",
    "gguf": "GGUF files",
    "huggingface_hub": "models on the hub",
    "jinja2": "chat templates",
    "typer": "the program edge",
    "rich": "the program edge",
    "markdown-it-py": "the chat's formatting",
    "prompt_toolkit": "the chat's input line",
    "tqdm": "the progress of downloads",
    "psutil": "the machine's memory and state",
}
_OPTIONAL = {
    BUILT_IN.package: ("the default model", BUILT_IN.install),
    "matplotlib": ("plots of edge profile --html", "pip install 'minicpm-edge[profile]'"),
    "llguidance": ("answers in a given form", "pip install 'minicpm-edge[grammar]'"),
    "onnxruntime": ("folders of edge export --to onnx", "pip install onnxruntime"),
    "torch": ("PyTorch checkpoints' reference network and tests", "pip install 'minicpm-edge[train]'"),
}
_LITTLE_SPACE = 2 << 30


@dataclass(frozen=True)
class Finding:
    """What one check found. mend: the command or step that helps, if something is wrong."""

    check: str
    state: State
    detail: str
    mend: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All findings. healthy: nothing that was asked for fails."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is no problem; warnings and notes do not count."""
        return all(finding.state != "problem" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "schema": 1,
            "healthy": self.healthy,
            "findings": [dict(vars(finding)) for finding in self.findings],
        }


def diagnose(
    executors: tuple[str, ...] = (NATIVE,),
    *,
    only: tuple[str, ...] | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Diagnosis:
    """Run every check, or those that `only` names.

    executors: those that must work. progress: called with the name of each check before it.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": _packages,
        "machine": _machine,
        "native library": _native,
        "huge pages": _huge_pages,
        "cache folder": _cache,
        "executors": lambda: _executors(executors),
        "CUDA": _cuda,
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        if only is not None and name not in only:
            continue
        progress(name)
        findings += check()
    return Diagnosis(tuple(findings))


def _packages() -> Iterator[Finding]:
    missing = []
    versions = []
    for name, purpose in _PACKAGES.items():
        version = _version(name)
        if version is None:
            missing.append(f"{name} ({purpose})")
        else:
            versions.append(f"{name} {version}")
    if missing:
        detail = f"missing: {', '.join(missing)}"
        yield Finding("packages", "problem", detail, "pip install --force-reinstall minicpm-edge")
    yield Finding("packages", "ok", ", ".join(versions))
    for name, (purpose, command) in _OPTIONAL.items():
        version = _version(name)
        if version is None:
            yield Finding("optional package", "note", f"{name} is not installed ({purpose})", command)
        else:
            yield Finding("optional package", "ok", f"{name} {version} ({purpose})")


def _machine() -> Iterator[Finding]:
    installed, free = machine.memory_bytes(), available_memory()
    parts = [machine.cpu_name(), f"{machine.core_count()} cores"]
    parts += [f"{format_bytes(installed)} of memory"] if installed else []
    parts += [f"{format_bytes(free)} of it free"] if free is not None else []
    yield Finding("machine", "ok", ", ".join(parts))
    load = machine.load()
    if load is not None and machine.noise_remarks(load, None, machine.core_count()):
        detail = f"{load:g} processes are running on {machine.core_count()} cores: measurements will be noisy"
        yield Finding("load", "warning", detail, "end other programs before measuring")


def _native() -> Iterator[Finding]:
    from edge.executors.native import library as native
    from edge.executors.native.executor import TIER_VARIABLE

    try:
        native.library()
    except EdgeError as error:
        yield Finding("native library", "problem", str(error), "pip install --force-reinstall minicpm-edge")
        return
    tiers, asked = native.cpu_tiers(), os.environ.get(TIER_VARIABLE)
    threads = native.default_threads()
    if asked and asked not in tiers:
        detail = f"{TIER_VARIABLE}={asked}, but this CPU has: {', '.join(tiers)}"
        yield Finding("kernels", "problem", detail, f"unset {TIER_VARIABLE}")
        asked = None
    chosen = asked or tiers[0]
    why = f" ({TIER_VARIABLE} says so)" if asked else ""
    detail = f"tier {chosen}{why} of {', '.join(tiers)}, {threads} threads"
    yield Finding("kernels", "ok", detail)
    for tier in tiers:
        try:
            native.check(native.library().edge_self_test(tier.encode()))
            yield Finding("self-test", "ok", f"{tier}: every kernel agrees with the portable one")
        except EdgeError as error:
            mend = f"use another tier: {TIER_VARIABLE}=portable; and report this"
            yield Finding("self-test", "problem", f"{tier}: {error}", mend)
    yield from _bandwidth(threads, chosen)


def _bandwidth(threads: int, tier: str) -> Iterator[Finding]:
    from edge.measure.profile.roofline import RooflineProbe

    probe = RooflineProbe()
    try:
        found = max((probe.measure(threads, tier) for _ in range(3)), key=lambda each: each.read_bytes)
    finally:
        probe.close()
    detail = (
        f"reads {found.read_bytes / 1e9:.1f} GB/s, int8 {2 * found.int8 / 1e12:.2f} TOPS, "
        f"float {2 * found.float32 / 1e12:.2f} TFLOPS (best of 3)"
    )
    yield Finding("limits", "ok", detail)


def _huge_pages() -> Iterator[Finding]:
    mode = machine.huge_pages()
    if mode is None:
        yield Finding("huge pages", "note", "this system does not offer them: weights are read more slowly")
    elif mode == "never":
        switch = "/sys/kernel/mm/transparent_hugepage/enabled"
        mend = f"as root: echo madvise > {switch}"
        yield Finding("huge pages", "warning", "they are switched off: weights are read more slowly", mend)
    else:
        yield Finding("huge pages", "ok", f"available ({mode})")


def _cache() -> Iterator[Finding]:
    folder = cache_folder()
    mend = "set EDGE_CACHE to a folder that you may write to"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        detail = f"'{folder}' can't be written ({error.strerror or error})"
        yield Finding("cache folder", "problem", detail, mend)
        return
    try:
        entries = cached_models()
    except EdgeError as error:
        yield Finding("cache folder", "problem", str(error), mend)
        return
    sound = 0
    for entry in entries:
        command = f"edge cache remove {shlex.quote(entry.name)}"
        if entry.name.startswith("."):
            detail = f"'{entry.name}' is unfinished: a conversion is running, or was killed"
            yield Finding("cached model", "warning", detail, command)
            continue
        try:
            Bundle.open(entry.path)
            sound += 1
        except BundleError as error:
            yield Finding("cached model", "warning", str(error), command)
    size = sum(entry.bytes for entry in entries)
    yield Finding("cache folder", "ok", f"{folder}: {sound} sound models, {format_bytes(size)} in all")
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        if free < _LITTLE_SPACE:
            detail = f"{format_bytes(free)} are free in '{folder}': converting a model may fill the disk"
            yield Finding("disk", "warning", detail, "edge cache remove --all, or set EDGE_CACHE")


def _executors(asked: tuple[str, ...]) -> Iterator[Finding]:
    for name in asked:
        try:
            spec = EXECUTORS.find(name)
        except EdgeError as error:  # a plugin that can't be loaded
            yield Finding("executor", "problem", str(error), "update that plugin, or uninstall it")
            continue
        if spec is None:
            detail = f"there is no executor '{name}' in this version"
            yield Finding("executor", "problem", detail, f"use one of: {', '.join(EXECUTORS)}")
            continue
        try:
            spec.load()
        except EdgeError as error:
            yield Finding("executor", "problem", str(error), spec.install or None)
            continue
        runs = "bundles" if spec.target is None else f"folders of edge export --to {spec.target}"
        yield Finding("executor", "ok", f"{name} is there, and runs {runs}")


def _cuda() -> Iterator[Finding]:
    """The GPU, the kernels that it would get, and one launch of every operator."""
    from edge.executors.cuda.driver import CudaDevice
    from edge.executors.cuda.libcuda import MissingDriverError
    from edge.executors.cuda.manifest import cuda_version

    try:
        device = CudaDevice()
    except MissingDriverError as error:
        yield Finding("CUDA", "note", str(error))
        return
    except EdgeError as error:
        yield Finding("CUDA", "warning", str(error))
        return
    with closing(device):
        facts = device.facts
        memory, free = format_bytes(facts.memory), format_bytes(device.free_memory)
        detail = (
            f"{facts.name}, {memory} of memory ({free} free), "
            f"compute capability {facts.architecture // 10}.{facts.architecture % 10}, "
            f"driver for CUDA {cuda_version(device.driver_version)}"
        )
        yield Finding("CUDA", "ok", detail)
        yield from _cuda_kernels(device)


def _cuda_kernels(device: CudaDevice) -> Iterator[Finding]:
    from edge.executors.cuda.self_checks import self_check

    try:
        cubins = device.cubins
        taken = Counter(
            cubins.choose(kernel, device.facts, device.driver_version).name
            for kernel in cubins.manifest.kernels.values()
        )
    except EdgeError as error:
        yield Finding("CUDA kernels", "warning", str(error))
        return
    listed = ", ".join(
        f"{count} as {name}" + (" (the driver compiles them at their first use)" if "compute" in name else "")
        for name, count in taken.items()
    )
    yield Finding("CUDA kernels", "ok", f"{listed or 'none'}, from '{cubins.folder}'")
    for operator, fault in self_check(device):
        if fault is None:
            yield Finding("CUDA self-test", "ok", f"{operator} gives the right values")
        else:
            mend = "build the kernels of this version (make cubins); if that does not help, report this"
            yield Finding("CUDA self-test", "problem", f"{operator}: {fault}", mend)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
