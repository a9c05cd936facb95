"""Writes a bundle: a folder that appears complete under its name, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edge import __version__
from edge.config import ModelConfig
from edge.config.tensors import expected_tensors
from edge.errors import BundleError
from edge.formats.atomic import Partial, write_failure
from edge.formats.bundle.manifest import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    MANIFEST,
    WEIGHTS,
    BundleTensor,
    FileEntry,
    Manifest,
    required_operators,
)
from edge.formats.bundle.reader import Bundle
from edge.formats.bundle.stamps import Stamps, remove_stamp
from edge.formats.safetensors import SafetensorsWriter
from edge.system.units import format_bytes

WEIGHTS_METADATA = {"format": "minicpm-edge"}
"""Of the weights file."""


class BundleWriter:
    """Streams a bundle into `path`; use it as a context manager and write the tensors in the order given.

    Everything goes into a hidden folder beside `path` (`.NAME.*.partial`), is synced, gets its manifest last
    and is renamed when the block ends without an error. `path` must not exist. A full disk or a folder that
    cannot be written is a BundleError.
    """

    def __init__(
        self,
        path: str | Path,
        config: ModelConfig,
        source: str,
        tensors: Sequence[BundleTensor],
        *,
        tokenizer_files: Mapping[str, bytes] | None = None,
        chat_template: str | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self._config, self._source = config, source
        self._tensors = {tensor.name: tensor for tensor in tensors}
        shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        if shapes != expected_tensors(config):
            raise ValueError("the tensors do not match the config")
        self._small_files = small_files(tokenizer_files or {}, chat_template, generation_config or {})

    def __enter__(self) -> BundleWriter:
        if self.path.exists():
            raise BundleError(f"'{self.path}' exists already; remove it or choose another folder.")
        needed = sum(tensor.bytes for tensor in self._tensors.values())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path.parent).free
            if free < needed:
                raise BundleError(
                    f"'{self.path}' needs {format_bytes(needed)}, but only {format_bytes(free)} are free "
                    "there; free some space or choose another folder."
                )
            self._partial = Partial(self.path, folder=True)
        except OSError as error:
            raise BundleError(write_failure(self.path, error)) from None
        self._folder = self._partial.path
        try:
            self._weights = SafetensorsWriter(
                self._folder / WEIGHTS, weight_specs(self._tensors.values()), WEIGHTS_METADATA
            )
            self._weights.__enter__()
        except OSError as error:
            self._partial.__exit__(None, None, None)
            raise BundleError(write_failure(self.path, error)) from None
        return self

    def write(self, name: str, data: npt.NDArray[np.uint8]) -> None:
        """Append packed bytes to tensor `name`; a tensor may come in several pieces."""
        try:
            self._weights.write(name, data)
        except OSError as error:
            raise BundleError(write_failure(self.path, error)) from None

    def mark_rounded(self, name: str) -> None:
        """Record that the values of tensor `name` were rounded, which only reading them could tell."""
        self._tensors[name] = replace(self._tensors[name], exact=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._weights.__exit__(kind, error, trace)
            if kind is None:
                self._finish()
        except OSError as failure:
            raise BundleError(write_failure(self.path, failure)) from None
        finally:
            self._partial.__exit__(kind, error, trace)

    def _finish(self) -> None:
        files = {WEIGHTS: FileEntry(self._weights.bytes, self._weights.sha256)}
        for name, data in self._small_files.items():
            self._write_small(name, data)
            files[name] = FileEntry(len(data), hashlib.sha256(data).hexdigest())
        manifest = Manifest(
            config=self._config,
            source=self._source,
            tensors=self._tensors,
            files=files,
            operators=required_operators(self._tensors),
            created_by=created_by(),
        )
        self._write_small(MANIFEST, manifest.encode())
        Bundle.open(self._folder, verify=True, compact=True)  # what was written is what the manifest says
        remove_stamp(self._folder)
        self._partial.keep()
        stamps = Stamps(self.path)
        for name, entry in files.items():
            stamps.add(name, (self.path / name).stat(), entry.sha256)
        stamps.save()

    def _write_small(self, name: str, data: bytes) -> None:
        with (self._folder / name).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def small_files(
    tokenizer_files: Mapping[str, bytes], chat_template: str | None, generation_config: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files of a bundle beside weights and manifest, by name."""
    files = dict(tokenizer_files)
    if chat_template is not None:
        files[CHAT_TEMPLATE] = chat_template.encode()
    if generation_config:
        files[GENERATION_CONFIG] = json.dumps(generation_config, indent=1).encode()
    return files


def weight_specs(tensors: Iterable[BundleTensor]) -> list[tuple[str, str, tuple[int, ...]]]:
    """The tensors of a bundle's weights file, as `SafetensorsWriter` takes them."""
    return [(tensor.name, "U8", (tensor.bytes,)) for tensor in tensors]


def created_by() -> str:
    """This program and its version."""
    return f"minicpm-edge {__version__}"
