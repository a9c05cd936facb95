"""Ternary weights behind floats, packed without loss; a model that has none is refused with its distance."""

from __future__ import annotations

import numpy as np

from edge.checkpoints.base import Checkpoint
from edge.errors import ExportError
from edge.quantize import quantize
from edge.scheme import QuantScheme
from export.quantize.weights import layer_matrices, read_float32

_GROUPS = (0, 128, 64, 32)


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


def ternary_distance(matrix: np.ndarray) -> float:
    """||W - T|| / ||W||, T by BitCPM's rule, for the best of groups of 32, 64, 128 and whole rows."""
    norm = float(np.linalg.norm(matrix)) or 1.0
    return min(
        float(np.linalg.norm(matrix - quantize(matrix, QuantScheme("ternary", group)).dequantize())) / norm
        for group in _GROUPS
    )
