"""Rows of the embedding, see `kernels/cuda/embedding.py`."""

from __future__ import annotations

import numpy as np

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.trial import Trial


def embed(
    device: Device, table: Address, tokens: Address, stream: Address, *, rows: int, columns: int, scale: float
) -> None:
    """stream float32 [rows, columns] = scale * table float16 [vocabulary, columns] at tokens int32 [rows]."""
    device.launch("embed.f16", (rows, 1, 1), (tokens, table, stream, columns, scale))


def self_check(trial: Trial) -> None:
    """Three rows of a small table, one of them twice."""
    table = np.arange(-100, 100, dtype=np.float16).reshape(5, 40)
    tokens = np.array([4, 0, 4], np.int32)
    wanted = 0.5 * table[tokens].astype(np.float32)
    stream = trial.room(wanted.nbytes)
    embed(trial.device, trial.sent(table), trial.sent(tokens), stream, rows=3, columns=40, scale=0.5)
    trial.expect(stream, wanted)
