"""Kinds that a network is trained for, packed without loss; a checkpoint of other weights is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import TensorInfo, TensorSource
from edge.checkpoints.weights import read_float32
from edge.errors import CheckpointError
from edge.quant.kinds import SchemeKind
from edge.quant.scheme import QuantScheme

_GROUPS = (0, 128, 64, 32)
_ROUNDS = 8


def check_trained(
    checkpoint: TensorSource, scheme: QuantScheme, matrices: Sequence[TensorInfo], what: str
) -> None:
    """Raise CheckpointError unless the checkpoint's reader found all these matrices in the scheme's kind.

    what: the matrices in words. The groups are the checkpoint's own: a scheme that names others than its
    kind's is refused.
    """
    kind = scheme.declared
    others = [info for info in matrices if info.scheme.kind != kind.name]
    if others:
        name = others[0].name
        distance = kind_distance(read_float32(checkpoint, name), kind)
        raise CheckpointError(
            f"{checkpoint.source} is not {kind.name}: {len(others)} of its {len(matrices)} {what} are not, "
            f"and rounding the first ('{name}') would change it by {distance:.2%} of its norm; quantize "
            f"it to int4, or give a checkpoint that was trained with {kind.name} weights."
        )
    regrouped = [info for info in matrices if info.scheme != scheme]
    if regrouped and scheme.group != kind.group:
        raise CheckpointError(
            f"'{regrouped[0].name}' of {checkpoint.source} is {regrouped[0].scheme}, not {scheme}, and keeps "
            f"the groups that it was trained with; quantize to {kind.name}."
        )


def kind_distance(matrix: npt.NDArray[np.float32], kind: SchemeKind) -> float:
    """||W - Q|| / ||W||, Q the nearest matrix of this kind in groups of 32, 64, 128 or whole rows."""
    norm = float(np.linalg.norm(matrix)) or 1.0
    return min(_distance(matrix, kind, group or matrix.shape[1]) for group in _GROUPS) / norm


def _distance(matrix: npt.NDArray[np.float32], kind: SchemeKind, group: int) -> float:
    """||W - Q||, Q of codes times one scale per group: in turn the nearest codes, and the best scale."""
    padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % group)))
    parts = padded.reshape(len(matrix), -1, group)
    scale = np.abs(parts).mean(-1, keepdims=True) * 2 / (kind.high + 1)
    for _ in range(_ROUNDS):
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        codes = np.clip(np.rint(parts * inverse), kind.low, kind.high)
        scale = (parts * codes).sum(-1, keepdims=True) / np.maximum((codes * codes).sum(-1, keepdims=True), 1)
    return float(np.linalg.norm(parts - codes * scale))
