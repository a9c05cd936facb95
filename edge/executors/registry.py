"""The names of `--executor` that the runtime knows, and how it opens those for exported folders.

`native` runs bundles and is made by `edge.runtime.load` itself, as is any executor given as a function.
Those over exported folders are modules here with `open_executor(artifact, *, context, threads)`, imported
when they are chosen. Other packages offer references over bundles, with weights, activations and caches in
float32, as entry points of the group `minicpm_edge.executors`: functions (bundle, context, attention,
threads). `model` does so for `torch`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.executors.protocol import Executor
    from edge.formats.artifact.folder import Artifact

NATIVE = "native"
_MODULES = {"onnx": "edge.executors.onnx.executor", "executorch": "edge.executors.executorch.executor"}
ARTIFACT_EXECUTORS = tuple(name for name, module in _MODULES.items() if importlib.util.find_spec(module))
"""Executors that run what `edge export --to NAME` writes."""
EXECUTORS = (NATIVE, *ARTIFACT_EXECUTORS)
"""All names of this package."""
_GROUP = "minicpm_edge.executors"


@cache
def offered_executors() -> dict[str, EntryPoint]:
    """The references that installed packages offer, by name."""
    return {entry.name: entry for entry in entry_points(group=_GROUP)}


def offered_executor(name: str) -> Callable[..., Any]:
    """The function that makes it; EdgeError if a package that it needs is missing."""
    try:
        make: Callable[..., Any] = offered_executors()[name].load()
    except ImportError as error:
        raise EdgeError(
            f"The executor '{name}' needs a package that is not installed ({error}); "
            "install it with `pip install minicpm-edge[train]`."
        ) from None
    return make


def open_artifact_executor(
    name: str, artifact: Artifact, *, context: int | None = None, threads: int | None = None
) -> Executor:
    """The executor `name` over an exported folder.

    context: at most, and by default, the one that the folder was exported for. threads: by default the
    performance cores. Raises EdgeError for a missing package, a version of the runtime that the folder does
    not support, and a context beyond its own.
    """
    if name not in ARTIFACT_EXECUTORS:
        raise EdgeError(f"Unknown executor '{name}'; choose one of {', '.join(EXECUTORS)}.")
    limit = artifact.manifest.context
    if context is not None and context > limit:
        raise EdgeError(
            f"The model was exported for a context of {limit} tokens, not {context}: ask for less, or "
            "export it again with a longer context."
        )
    executor: Executor = importlib.import_module(_MODULES[name]).open_executor(
        artifact, context=context or limit, threads=threads
    )
    return executor
