"""Opens a bundle for the runtime: checks it, then maps its weights into memory.

Checksums of the files are computed on the first load and with `verify=True`. A load that found them right
leaves a stamp (`edge.formats.bundle.stamps`), as does the writer, which knows them; later loads check sizes,
modification times and headers only, so that a start stays fast.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.config.tensors import check_dense, expected_tensors
from edge.errors import BundleError, CheckpointError, ConfigError
from edge.formats.bundle.manifest import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    MANIFEST,
    WEIGHTS,
    BundleTensor,
    FileEntry,
    Manifest,
)
from edge.formats.bundle.stamps import Stamps
from edge.formats.guarded_json import decode_text, parse_object
from edge.formats.hashing import file_sha256
from edge.formats.model_folder import member, read_member
from edge.formats.safetensors import SafetensorsFile

_NOT_TOKENIZER = (WEIGHTS, CHAT_TEMPLATE, GENERATION_CONFIG)


class Bundle:
    """An open bundle. Make one with `Bundle.open`.

    path: its folder. manifest: everything it says. config: the network. tensors: name -> BundleTensor. What
    `edge.formats.model_files.ModelFiles` says of exported folders is open here.
    """

    def __init__(self, path: Path, manifest: Manifest, weights: SafetensorsFile) -> None:
        self.path = path
        self.manifest = manifest
        self._weights = weights

    @classmethod
    def open(cls, path: str | Path, verify: bool = False, *, compact: bool = False) -> Bundle:
        """Check and map the bundle in folder `path`; verify recomputes every checksum.

        compact: accept a bundle with tensors in base 3, which can't run as it is
        (`edge.checkpoints.compact`). Raises BundleError, with one sentence, for a folder that is no bundle
        and for one that is truncated, altered, newer than this program, or contradicts its own config.
        """
        path = Path(path)
        text = read_member(path, MANIFEST, BundleError)
        if text is None:
            raise BundleError(
                f"'{path}' is not a bundle: it has no {MANIFEST}; convert the model again or name another."
            )
        manifest = Manifest.parse(text, str(path / MANIFEST))
        if manifest.is_compact and not compact:
            raise BundleError(
                f"'{path}' is a compact bundle, which must be unpacked before it runs; open it with "
                "`edge.load` or another command of this program."
            )
        check_files(path, manifest.files, verify)
        try:
            weights = SafetensorsFile(path / WEIGHTS)
        except CheckpointError as error:
            raise BundleError(str(error)) from None
        _check_tensors(path, manifest, weights)
        return cls(path, manifest, weights)

    target = None
    flavour = ""
    attention = None
    kv_type = None
    context = None
    activations: str | None = None

    @property
    def source(self) -> str:
        """Where the weights came from, in words."""
        return self.manifest.source

    @property
    def config(self) -> ModelConfig:
        """The network."""
        return self.manifest.config

    def with_config(self, config: ModelConfig) -> Bundle:
        """The same weights read as another network."""
        changed = copy.copy(self)
        changed.manifest = replace(self.manifest, config=config)
        return changed

    def with_activations(self, activations: str) -> Bundle:
        """The same model, which wants such activations where nobody chooses."""
        changed = copy.copy(self)
        changed.activations = activations
        return changed

    @property
    def tensors(self) -> dict[str, BundleTensor]:
        """Every tensor by name, in the order of the file."""
        return dict(self.manifest.tensors)

    @property
    def content_hash(self) -> str:
        """Hex digest of what the bundle computes: config, tensors and every file."""
        return self.manifest.content_hash

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The packed bytes of a tensor, mapped and read-only: uint8 [tensor.bytes], aligned to 64 bytes."""
        if name not in self.manifest.tensors:
            raise BundleError(f"'{self.path}' has no tensor '{name}'.")
        return self._weights.array(name)

    def offset(self, name: str) -> int:
        """Where the packed bytes of a tensor start in the weights file, a multiple of 64."""
        return self._weights.offset(name)

    @property
    def weights_file(self) -> Path:
        """The file that holds the packed bytes of all tensors."""
        return self._weights.path

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files."""
        if name not in self.manifest.files:
            raise BundleError(f"'{self.path}' has no file '{name}'.")
        return self.path / name

    def file_bytes(self, name: str) -> bytes:
        """The contents of one of the bundle's files."""
        self.file(name)
        data = read_member(self.path, name, BundleError)
        if data is None:
            raise BundleError(f"'{self.path}' has lost its file '{name}'; convert or copy the model again.")
        return data

    @cached_property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer's files by name, empty if the checkpoint had none."""
        return {name: self.file_bytes(name) for name in self.tokenizer_names}

    @property
    def tokenizer_names(self) -> list[str]:
        """The names of the tokenizer's files."""
        return [name for name in self.manifest.files if name not in _NOT_TOKENIZER]

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja chat template, or None."""
        if CHAT_TEMPLATE not in self.manifest.files:
            return None
        return decode_text(self.file_bytes(CHAT_TEMPLATE), self.path / CHAT_TEMPLATE, BundleError)

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """The model's own sampling settings, or an empty dict."""
        if GENERATION_CONFIG not in self.manifest.files:
            return {}
        data = self.file_bytes(GENERATION_CONFIG)
        return parse_object(data, self.path / GENERATION_CONFIG, BundleError, "convert the model again")


def check_files(path: Path, files: Mapping[str, FileEntry], verify: bool) -> None:
    """Compare the files in folder `path` with its manifest's: sizes always, checksums with `verify` and where
    no stamp says that this very file was found right before. BundleError names the one that is wrong.
    """
    if WEIGHTS not in files:
        raise BundleError(f"'{path}' has no {WEIGHTS} in its manifest; convert the model again.")
    stamps = Stamps(path)
    for name, entry in files.items():
        file = member(path, name, BundleError)
        try:
            status = file.stat()
            if status.st_size != entry.bytes:
                raise BundleError(
                    f"'{file}' has {status.st_size} bytes instead of {entry.bytes}: it is truncated "
                    "or was replaced; convert or copy the model again."
                )
            if not verify and stamps.has(name, status, entry.sha256):
                continue
            if file_sha256(file) != entry.sha256:
                raise BundleError(
                    f"'{file}' was altered or damaged (its checksum does not match); "
                    "convert or copy the model again."
                )
        except FileNotFoundError:
            raise BundleError(
                f"'{file}' is missing from the bundle; convert or copy the model again."
            ) from None
        except OSError as error:
            raise BundleError(f"Cannot read '{file}': {error.strerror or error}.") from None
        stamps.add(name, status, entry.sha256)
    stamps.save()


def _check_tensors(path: Path, manifest: Manifest, weights: SafetensorsFile) -> None:
    try:
        check_dense(manifest.config)
        expected = expected_tensors(manifest.config)
    except ConfigError as error:
        raise BundleError(f"'{path}' needs a newer version, update minicpm-edge: {error}") from None
    check_stored(path, manifest.tensors, expected, weights)


def check_stored(
    path: Path,
    tensors: Mapping[str, BundleTensor],
    expected: Mapping[str, tuple[int, ...]],
    weights: SafetensorsFile,
) -> None:
    """Raise BundleError unless the manifest of the folder `path` names exactly the tensors that its config
    asks for, by name and shape, and its weights file stores them so.
    """
    advice = "convert the model again."
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise BundleError(f"'{path}' lacks the tensor '{name}', which its config asks for; {advice}")
        if tensor.shape != shape:
            raise BundleError(
                f"Tensor '{name}' of '{path}' has shape {list(tensor.shape)}, but its config asks for "
                f"{list(shape)}; {advice}"
            )
        stored = weights.tensors.get(name)
        if stored is None or stored.dtype != "U8" or stored.shape != (tensor.bytes,):
            raise BundleError(
                f"Tensor '{name}' of '{path}' is not stored as {tensor.bytes} bytes of layout "
                f"{tensor.layout}; {advice}"
            )
    for name in tensors:
        if name not in expected:
            raise BundleError(f"'{path}' has a tensor '{name}' that its config does not know; {advice}")
