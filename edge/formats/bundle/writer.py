"""Writes a bundle: a folder that appears complete under its name, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS_METADATA = {"format": "minicpm-edge"}
"""Of the weights file."""


class PackedWriter(ABC):
    """Streams packed tensors into the folder `path`; use it as a context manager and write the tensors in the
    order given.

    Everything goes into a hidden folder beside `path` (`.NAME.*.partial`), is synced, gets its manifest last
    and is renamed when the block ends without an error. `path` must not exist. A full disk or a folder that
    cannot be written is a BundleError.
    """

    def __init__(
        self,
        path: str | Path,
        tensors: Sequence[BundleTensor],
        small_files: Mapping[str, bytes],
        more: Sequence[tuple[str, str, tuple[int, ...]]] = (),
    ) -> None:
        """small_files: what lies beside the weights, by name. more: tensors of another kind behind the packed
        ones, as `SafetensorsWriter` takes them.
        """
        self.path = Path(path)
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._small_files = dict(small_files)
        self._specs = [*weight_specs(tensors), *more]

    @abstractmethod
    def manifest(self, tensors: Mapping[str, BundleTensor], files: Mapping[str, FileEntry]) -> bytes:
        """The contents of `manifest.json`, of tensors and files as they were written."""

    @abstractmethod
    def check(self, folder: Path) -> None:
        """Raise BundleError unless what was written in `folder` is what its manifest says."""

    def __enter__(self) -> Self:
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
            self._weights = SafetensorsWriter(self._folder / WEIGHTS, self._specs, WEIGHTS_METADATA)
            self._weights.__enter__()
        except OSError as error:
            self._partial.__exit__(None, None, None)
            raise BundleError(write_failure(self.path, error)) from None
        return self

    def write(self, name: str, data: npt.NDArray[Any]) -> None:
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
        self._write_small(MANIFEST, self.manifest(self._tensors, files))
        self.check(self._folder)
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


class BundleWriter(PackedWriter):
    """Writes a bundle of a model; see `PackedWriter`."""

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
        if {tensor.name: tensor.shape for tensor in tensors} != expected_tensors(config):
            raise ValueError("the tensors do not match the config")
        super().__init__(
            path, tensors, small_files(tokenizer_files or {}, chat_template, generation_config or {})
        )
        self._config, self._source = config, source

    def manifest(self, tensors: Mapping[str, BundleTensor], files: Mapping[str, FileEntry]) -> bytes:
        """See `edge.formats.bundle.manifest`."""
        return Manifest(
            config=self._config,
            source=self._source,
            tensors=tensors,
            files=files,
            operators=required_operators(tensors),
            created_by=created_by(),
        ).encode()

    def check(self, folder: Path) -> None:
        """Open it, with every checksum."""
        Bundle.open(folder, verify=True, compact=True)


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
