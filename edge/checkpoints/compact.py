"""Compact bundles: the form for downloads, with ternary matrices in base 3 (`edge.quant.base3`).

A compact bundle is read like any other checkpoint: `edge.hub.resolve` converts it once into the cache, where
its weights lie in the canonical layout again, byte for byte, and opens what came out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import TensorInfo
from edge.config import ModelConfig
from edge.errors import BundleError
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.reader import Bundle
from edge.formats.bundle.writer import BundleWriter
from edge.quant.base3 import pack_base3, unpack_base3
from edge.quant.scheme import PackedMatrix


def write_compact(bundle: Bundle, out: str | Path) -> None:
    """Write `bundle` in its compact form to `out`, a folder that must not exist.

    Raises BundleError if it has no ternary matrices (it would not become smaller) or `out` can't be written.
    """
    tensors = [
        replace(tensor, compact=tensor.scheme.compact_layout is not None)
        for tensor in bundle.tensors.values()
    ]
    if not any(tensor.compact for tensor in tensors):
        raise BundleError(
            f"'{bundle.path}' has no ternary matrices, so it has no compact form; use it as it is."
        )
    with BundleWriter(
        out,
        bundle.config,
        bundle.manifest.source,
        tensors,
        tokenizer_files=bundle.tokenizer_files,
        chat_template=bundle.chat_template,
        generation_config=bundle.generation_config,
    ) as writer:
        for tensor in tensors:
            data = bundle.data(tensor.name)
            if tensor.compact:
                data = pack_base3(data, tensor.scheme, tensor.rows, tensor.columns)
            writer.write(tensor.name, data)


class CompactCheckpoint:
    """A compact bundle as the source of a conversion. bundle: opened with `compact=True`."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    @property
    def source(self) -> str:
        """What the bundle was made from."""
        return self._bundle.manifest.source

    @property
    def config(self) -> ModelConfig:
        """The network."""
        return self._bundle.config

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """Every tensor, with what the bundle says about its origin."""
        return [_info(tensor) for tensor in self._bundle.tensors.values()]

    def read(self, name: str) -> npt.NDArray[np.float32] | PackedMatrix:
        """One tensor in the canonical layout; a norm as floats."""
        tensor, data = self._bundle.tensors[name], self._bundle.data(name)
        if len(tensor.shape) == 1:
            return data[: 4 * tensor.columns].view("<f4")
        if tensor.compact:
            data = unpack_base3(data, tensor.scheme, tensor.rows, tensor.columns)
        return PackedMatrix(tensor.scheme, (tensor.rows, tensor.columns), data)

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer's files by name."""
        return self._bundle.tokenizer_files

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template, or None."""
        return self._bundle.chat_template

    @property
    def generation_config(self) -> dict[str, Any]:
        """The model's own sampling settings."""
        return self._bundle.generation_config


def _info(tensor: BundleTensor) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.shape, tensor.source_type, tensor.scheme, tensor.exact)
