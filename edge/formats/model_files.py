"""What everything above the formats needs of an opened model, whether a bundle or an exported folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edge.config import KVType, ModelConfig
from edge.formats.bundle.manifest import BundleTensor


class ModelTexts(Protocol):
    """What a checkpoint, a bundle and an exported folder say beside their weights."""

    @property
    def config(self) -> ModelConfig:
        """The network."""

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """`tokenizer.json` or `tokenizer.model` with the small files beside it, by name; empty for a model
        without.
        """

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template, or None."""

    @property
    def generation_config(self) -> dict[str, Any]:
        """The settings that the model's authors recommend (`generation_config.json`), or an empty dict."""


class PackedFiles(Protocol):
    """Tensors in the kernels' own layout, to be mapped into memory: of a model or of its draft."""

    @property
    def tensors(self) -> Mapping[str, BundleTensor]:
        """Every tensor of the network by name."""

    @property
    def weights_file(self) -> Path:
        """The file of packed tensors."""

    def offset(self, name: str) -> int:
        """Where the packed bytes of a tensor start in that file."""

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The packed bytes of a tensor, mapped and read-only."""


class ModelFiles(ModelTexts, PackedFiles, Protocol):
    """An open folder with a model: `edge.formats.bundle.reader.Bundle` and
    `edge.formats.artifact.folder.Artifact`.
    """

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def source(self) -> str:
        """Where the weights came from, in words."""

    @property
    def target(self) -> str | None:
        """The runtime that the folder was exported for; None for a bundle, whose executor is free."""

    @property
    def flavour(self) -> str:
        """Which form of the target an exported folder has; "" for a bundle."""

    @property
    def attention(self) -> Literal["dense", "sparse"] | None:
        """What an exported folder computes; None leaves it to whoever runs the files."""

    @property
    def kv_type(self) -> KVType | None:
        """What the caches of an exported folder hold; None leaves it to whoever runs the files."""

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens that an exported folder takes; None where the config alone says it."""

    @property
    def activations(self) -> str | None:
        """What the model wants matrices to be multiplied with where nobody chooses; None: anything."""

    @property
    def content_hash(self) -> str:
        """Hex digest of what the model computes."""

    def with_config(self, config: ModelConfig) -> ModelFiles:
        """The same weights read as another network; ArtifactError for a folder, which can't change."""
