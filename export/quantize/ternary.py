"""Ternary weights behind floats, packed without loss; a model that has none is refused with its distance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import Checkpoint
from edge.errors import ExportError
from edge.export.quantize.weights import layer_matrices, read_float32

_GROUPS = (0, 128, 64, 32)
_ROUNDS = 8


def check_ternary(checkpoint: Checkpoint) -> None:
    """Raise ExportError unless the checkpoint's reader found every linear layer ternary."""
    others = [info for info in layer_matrices(checkpoint) if info.scheme.kind != "ternary"]
    if not others:
        return
    name = others[0].name
    distance = ternary_distance(read_float32(checkpoint, name))
    raise ExportError(
        f"{checkpoint.source} is not ternary: {len(others)} of its {len(layer_matrices(checkpoint))} linear "
        f"layers are not, and rounding the first ('{name}') would change it by {distance:.2%} of its norm; "
        "quantize it to int4, or give a checkpoint that was trained with ternary weights."
    )


def ternary_distance(matrix: npt.NDArray[np.float32]) -> float:
    """||W - T|| / ||W||, T the nearest ternary matrix in groups of 32, 64, 128 or whole rows."""
    norm = float(np.linalg.norm(matrix)) or 1.0
    return min(_distance(np.abs(matrix), group or matrix.shape[1]) for group in _GROUPS) / norm


def _distance(sizes: npt.NDArray[np.float32], group: int) -> float:
    """||sizes - T||, T of 0 and one s per group: in turn which are 0, and the mean of the others."""
    padded = np.pad(sizes, ((0, 0), (0, -sizes.shape[1] % group)))
    parts = padded.reshape(len(sizes), -1, group)
    scale = parts.mean(-1, keepdims=True)
    for _ in range(_ROUNDS):
        kept = parts > scale / 2
        scale = (parts * kept).sum(-1, keepdims=True) / np.maximum(kept.sum(-1, keepdims=True), 1)
    return float(np.linalg.norm(parts - kept * scale))
