"""A draft bundle as what a draft bundle is made of: the same packed tensors, beside another head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import TensorInfo
from edge.checkpoints.frequency_list import TokenIds
from edge.config.draft import DraftConfig
from edge.formats.draft.files import DraftFiles
from edge.quant.packing import dequantize
from edge.quant.scheme import PackedMatrix


class PackedDraft:
    """Of a bundle that has no head of its own."""

    token_ids: TokenIds | None = None

    def __init__(self, files: DraftFiles) -> None:
        self._files = files
        self.config: DraftConfig = files.config
        self._tensors = [
            TensorInfo(name, tensor.shape, tensor.source_type, tensor.scheme, tensor.exact)
            for name, tensor in files.tensors.items()
        ]

    @property
    def source(self) -> str:
        """Where the bundle came from."""
        return self._files.source

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """Every tensor, in the schemes that it has."""
        return self._tensors

    def read(self, name: str) -> npt.NDArray[np.float32] | PackedMatrix:
        """One tensor: a norm as floats, a matrix as it lies there."""
        tensor, data = self._files.tensors[name], self._files.data(name)
        if len(tensor.shape) == 1:
            return dequantize(data, tensor.scheme, tensor.rows, tensor.columns).reshape(tensor.shape)
        return PackedMatrix(tensor.scheme, (tensor.rows, tensor.columns), data)
