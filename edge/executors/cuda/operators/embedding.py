"""Rows of the embedding, see `kernels/cuda/embedding.py`."""

from __future__ import annotations

import numpy as np

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.matrices import Matrix

_BLOCK = 1024


def embed(
    device: Device, table: Matrix, tokens: Address, stream: Address, *, rows: int, scale: float
) -> None:
    """stream float32 [rows, table.columns] = scale * rows `tokens` int32 [rows] of the table."""
    device.launch(
        f"embed.{table.variant}",
        (-(-table.columns // _BLOCK), rows, 1),
        (tokens, table.address, table.scales, stream, table.columns, table.tiles, scale),
    )
