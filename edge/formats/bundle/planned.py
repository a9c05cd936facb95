"""A bundle before it is written: everything that is known about it without reading the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.errors import EdgeError
from edge.formats.bundle.manifest import WEIGHTS, BundleTensor, FileEntry, Manifest, required_operators
from edge.formats.bundle.reader import Bundle
from edge.formats.bundle.writer import WEIGHTS_METADATA, created_by, small_files, weight_specs
from edge.formats.safetensors import safetensors_layout

_UNKNOWN = "0" * 64
"""In place of a SHA-256."""


class UnreadWeightsError(EdgeError):
    """Somebody asked a planned bundle for weights."""


class PlannedBundle(Bundle):
    """What `edge.hub.convert.convert` would write: manifest (checksums are zeros), sizes, offsets, small
    files.

    Its tensors' bytes do not exist: `data` raises UnreadWeightsError. Whether float16 holds every value of a
    float tensor is told by reading alone, so `exact` says yes.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: str,
        tensors: Sequence[BundleTensor],
        *,
        tokenizer_files: Mapping[str, bytes],
        chat_template: str | None,
        generation_config: Mapping[str, Any],
    ) -> None:
        header, self._offsets = safetensors_layout(weight_specs(tensors), WEIGHTS_METADATA)
        self._small_files = small_files(tokenizer_files, chat_template, generation_config)
        sizes = {name: len(data) for name, data in self._small_files.items()}
        by_name = {tensor.name: tensor for tensor in tensors}
        self.path = Path(source)
        self.manifest = Manifest(
            config=config,
            source=source,
            tensors=by_name,
            files={
                WEIGHTS: FileEntry(len(header) + sum(tensor.bytes for tensor in tensors), _UNKNOWN),
                **{name: FileEntry(size, _UNKNOWN) for name, size in sizes.items()},
            },
            operators=required_operators(by_name),
            created_by=created_by(),
        )

    @property
    def content_hash(self) -> str:
        """Zeros, of the right length."""
        return _UNKNOWN

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """Raises UnreadWeightsError."""
        raise UnreadWeightsError(f"'{self.path}' is not converted yet, so '{name}' can't be read.")

    def offset(self, name: str) -> int:
        """Where the bytes of a tensor will start in the weights file."""
        return self._offsets[name]

    def file_bytes(self, name: str) -> bytes:
        """The contents of one of the small files."""
        return self._small_files[name]
