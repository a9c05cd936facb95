"""A checkpoint whose layers have been quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import Checkpoint, TensorInfo
from edge.config import ModelConfig
from edge.export.quantize.workspace import Workspace
from edge.quant.scheme import PackedMatrix, QuantizedMatrix, QuantScheme


class QuantizedCheckpoint:
    """The checkpoint with the layers of a finished workspace in place of its own."""

    def __init__(self, checkpoint: Checkpoint, workspace: Workspace, scheme: QuantScheme) -> None:
        self._checkpoint, self._workspace = checkpoint, workspace
        self._layer_of = {
            name: layer for layer in range(workspace.finished) for name in workspace.layer(layer).tensors
        }
        self._infos = [
            TensorInfo(info.name, info.shape, info.source_type, scheme, exact=False)
            if info.name in self._layer_of and len(info.shape) == 2
            else info
            for info in checkpoint.tensors
        ]
        self._shapes = {info.name: info for info in self._infos}

    @property
    def source(self) -> str:
        """That of the checkpoint."""
        return self._checkpoint.source

    @property
    def config(self) -> ModelConfig:
        """The network."""
        return self._checkpoint.config

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """Every tensor; those of the layers in their new scheme."""
        return self._infos

    def read(self, name: str) -> npt.NDArray[np.float32] | QuantizedMatrix | PackedMatrix:
        """One tensor: packed where it was quantized."""
        if name not in self._layer_of:
            return self._checkpoint.read(name)
        data, info = self._workspace.layer(self._layer_of[name]).array(name), self._shapes[name]
        if len(info.shape) == 1:
            return data.view("<f4")
        rows, columns = info.shape
        return PackedMatrix(info.scheme, (rows, columns), data)

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """Those of the checkpoint."""
        return self._checkpoint.tokenizer_files

    @property
    def chat_template(self) -> str | None:
        """That of the checkpoint."""
        return self._checkpoint.chat_template

    @property
    def generation_config(self) -> dict[str, Any]:
        """That of the checkpoint."""
        return self._checkpoint.generation_config
