"""Rows of the embedding, see `kernels/cuda/embedding.py`."""

from __future__ import annotations

import numpy as np

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.matrices import Matrix, variant_of
from edge.executors.cuda.operators.repack import repack
from edge.executors.cuda.trial import Trial
from edge.quant.packing import pack
from edge.quant.scheme import QuantScheme

BLOCK = 1024
"""Columns of one program."""


def embed(
    device: Device, table: Matrix, tokens: Address, stream: Address, *, rows: int, scale: float
) -> None:
    """stream float32 [rows, table.columns] = scale * rows `tokens` int32 [rows] of the table."""
    device.launch(
        f"embed.{table.variant}",
        (-(-table.columns // BLOCK), rows, 1),
        (tokens, table.address, table.scales, stream, table.columns, table.tiles, scale),
    )


def self_check(trial: Trial) -> None:
    """Three rows of a small table, one of them twice."""
    values = np.arange(-80, 80, dtype=np.float16).reshape(5, 32)
    tokens = np.array([4, 0, 4], np.int32)
    wanted = 0.5 * values[tokens].astype(np.float32)
    scheme = QuantScheme("f16")
    table = Matrix(variant_of(scheme.packing), *values.shape)
    table = table.at(trial.room(table.size))
    repack(trial.device, scheme.packing, trial.sent(pack(values, scheme)), table, first=0, rows=5)
    stream = trial.room(wanted.nbytes)
    embed(trial.device, table, trial.sent(tokens), stream, rows=3, scale=0.5)
    trial.expect(stream, wanted)
