"""The targets of `edge export`, and what each of them offers. A module is imported when it is chosen."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from edge.errors import ExportError
from edge.export.check import CheckResult, Reference
from edge.export.options import ExportOptions
from edge.export.plan import Plan
from edge.export.source import Source
from edge.formats.artifact.folder import Artifact

Progress = Callable[[int, int, str], None]
"""Called with bytes (or steps) done, in total, and what is being written."""

_MODULES = {
    "bundle": "edge.export.targets.bundle",
    "gguf": "edge.export.targets.gguf.target",
    "coreml": "edge.export.targets.coreml.target",
    "onnx": "edge.export.targets.onnx.target",
    "executorch": "edge.export.targets.executorch.target",
}


@dataclass(frozen=True)
class Written:
    """What a target wrote into the folder.

    model: the file (or folder) that the runtime opens, as a path in the folder; all files that lie there are
    found by themselves. tensors: edge's tensor name -> the target's name of the type that it is stored in.
    """

    model: str
    tensors: Mapping[str, str]


class Target(Protocol):
    """A module's `TARGET`."""

    @property
    def name(self) -> str:
        """Its name after `--to`."""

    def plan(self, source: Source, options: ExportOptions) -> Plan:
        """What would be written; ExportError (naming the reason) for what this target can't do."""

    def write(
        self, source: Source, options: ExportOptions, folder: Path, progress: Progress | None
    ) -> Written:
        """Write the model's files into `folder`, which is temporary; OSError of a full disk may pass.

        Tokenizer, template, generation settings, reference and manifest come from `edge.export.artifact`.
        """

    def check(self, artifact: Artifact, reference: Reference) -> CheckResult:
        """Run the reference's tokens in the target's own runtime; ArtifactError if its version is wrong."""


def get_target(name: str) -> Target:
    """The target of that name; ExportError for an unknown one."""
    if name not in _MODULES:
        raise ExportError(f"Unknown target '{name}'; choose one of {', '.join(_MODULES)}.")
    try:
        module = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        raise ExportError(_needed(f"The target '{name}'", error.name or "", error)) from None
    target: Target = module.TARGET
    return target


def need(module: str, purpose: str) -> ModuleType:
    """Import an optional library, or raise ExportError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(_needed(purpose, module, error)) from None


def _needed(purpose: str, module: str, error: ImportError) -> str:
    """What to install, into this environment; torch has a page of its own, for it may come with CUDA."""
    package = module.partition(".")[0]
    command = f"`{sys.executable} -m pip install 'minicpm-edge[export]'`"
    if package == "torch":
        command += " (docs/install.md, torch for exports, says how to get its CPU build)"
    else:
        command = f"`{sys.executable} -m pip install {package}`, or all targets' with {command}"
    return f"{purpose} needs the package {package} ({error}); install it with {command}."
