"""Logits, see `kernels/cuda/head.py`."""

from __future__ import annotations

from edge.executors.cuda.device import Address, Device

_BLOCK = 1024  # columns of a program


def logits(device: Device, partial: Address, out: Address, *, slices: int, rows: int, columns: int) -> None:
    """out float32 [rows, columns] = the sum of partial float32 [slices, rows, columns], in order."""
    device.launch("head.logits", (rows, -(-columns // _BLOCK), 1), (partial, out, rows, columns, slices))
