"""Which of a checkpoint's tensors are linear layers, and any of its tensors as floats."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import Checkpoint, TensorInfo, TensorSource
from edge.config.tensors import EMBEDDING, HEAD
from edge.errors import CheckpointError
from edge.quant.packing import dequantize
from edge.quant.scheme import PackedMatrix, QuantizedMatrix


@runtime_checkable
class _ReadsFloats(Protocol):
    """A checkpoint whose `read` may round, and which can do without."""

    def read_float32(self, name: str) -> npt.NDArray[np.float32]: ...


def layer_matrices(checkpoint: Checkpoint) -> list[TensorInfo]:
    """The linear layers: every matrix but embedding and head."""
    return [
        info for info in checkpoint.tensors if len(info.shape) == 2 and info.name not in (EMBEDDING, HEAD)
    ]


def head_matrices(checkpoint: Checkpoint) -> list[TensorInfo]:
    """The others: embedding and, unless it is tied, head."""
    return [info for info in checkpoint.tensors if info.name in (EMBEDDING, HEAD)]


def read_float32(checkpoint: TensorSource, name: str) -> npt.NDArray[np.float32]:
    """One tensor as float32, as exactly as its format means it; a copy that may be changed.

    Raises CheckpointError for one that is not finite.
    """
    if isinstance(checkpoint, _ReadsFloats):
        values = checkpoint.read_float32(name)
    else:
        source = checkpoint.read(name)
        if isinstance(source, PackedMatrix):
            values = dequantize(source.data, source.scheme, *source.shape)
        else:
            values = source.dequantize() if isinstance(source, QuantizedMatrix) else source.copy()
    if not np.isfinite([values.min(), values.max()]).all():
        raise CheckpointError(
            f"Tensor '{name}' of {checkpoint.source} has NaN or infinite values; "
            "the checkpoint is damaged, download or save it again."
        )
    return values
