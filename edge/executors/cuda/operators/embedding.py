"""Rows of the embedding, see `kernels/cuda/embedding.py`."""

from __future__ import annotations

from edge.executors.cuda.device import Address, Device


def embed(
    device: Device, table: Address, tokens: Address, stream: Address, *, rows: int, columns: int, scale: float
) -> None:
    """stream float32 [rows, columns] = scale * table float16 [vocabulary, columns] at tokens int32 [rows]."""
    device.launch("embed.f16", (rows, 1, 1), (tokens, table, stream, columns, scale))
