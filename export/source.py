"""The model that a target lowers: a bundle, read one tensor at a time.

Whatever a person names becomes a bundle first, through the cache of converted models: an export that was
interrupted finds it there and does not quantize again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.attention import resolve_attention
from edge.bundle.manifest import BundleTensor
from edge.bundle.reader import Bundle
from edge.config import ModelConfig, SparseConfig
from edge.convert import Progress
from edge.errors import ExportError
from edge.packing import dequantize, unpack
from edge.scheme import QuantizedMatrix
from export.options import QUANTIZATIONS, ExportOptions


class Source:
    """A bundle as targets see it. Tensor names and row order are those of `edge.tensors`."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @property
    def config(self) -> ModelConfig:
        """The network."""
        return self.bundle.config

    @property
    def name(self) -> str:
        """Where the weights came from, in words."""
        return self.bundle.manifest.source

    @property
    def sha256(self) -> str:
        """Hex digest of what is exported: config, tensors and every file of the bundle."""
        return self.bundle.content_hash

    @property
    def tensors(self) -> Mapping[str, BundleTensor]:
        """Shape and scheme of every tensor, in the order in which decoding reads them."""
        return self.bundle.tensors

    def tensor(self, name: str) -> npt.NDArray[np.floating[Any]] | QuantizedMatrix:
        """One tensor in plain order: codes and scales, float16 [rows, columns], or a float32 norm [n]."""
        info = self.tensors[name]
        plain = unpack(self.bundle.data(name), info.scheme, info.rows, info.columns)
        return plain.reshape(info.shape) if isinstance(plain, np.ndarray) else plain

    def packed(self, name: str) -> npt.NDArray[np.uint8]:
        """One tensor in the canonical layout of `edge.packing`, mapped and read-only, padded to 64 bytes."""
        return self.bundle.data(name)

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor as float32 in its own shape."""
        info = self.tensors[name]
        return dequantize(self.bundle.data(name), info.scheme, info.rows, info.columns).reshape(info.shape)

    def context(self, options: ExportOptions) -> int:
        """The context in tokens that the artifact is made for; ContextError beyond the trained one."""
        tokens = self.config.max_position_embeddings if options.context is None else options.context
        self.config.check_context(tokens)
        return tokens

    def sparse(self, options: ExportOptions, obstacle: str | None = None) -> SparseConfig | None:
        """The constants of sparse attention, None for dense; obstacle: why the target can't run it, if so."""
        context = self.context(options)
        return resolve_attention(self.config, options.attention, context=context, obstacle=obstacle)

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer's files by name."""
        return self.bundle.tokenizer_files

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template, or None."""
        return self.bundle.chat_template

    @property
    def generation_config(self) -> dict[str, Any]:
        """The model's own sampling settings, or an empty dict."""
        return self.bundle.generation_config


def open_source(
    model: str,
    options: ExportOptions,
    progress: Progress | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
) -> Source:
    """Open and, where asked for, quantize what a person names (see `edge.resolve.open_model`)."""
    from edge.resolve import open_model

    if options.calibrated:
        raise ExportError("Calibrated quantization is not part of this version; use `--method rtn`.")
    quantize, group = QUANTIZATIONS[options.quantize] if options.quantize else (None, None)
    bundle = open_model(
        model, quantize=quantize, group=group, revision=revision, offline=offline, progress=progress
    )
    return Source(bundle)
