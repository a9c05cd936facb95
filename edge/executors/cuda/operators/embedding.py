"""Rows of the embedding, see `kernels/cuda/embedding.py`."""

from __future__ import annotations

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.matrices import Matrix

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
