"""The gated MLP's middle, see `kernels/cuda/swiglu.py`."""

from __future__ import annotations

from edge.executors.cuda.device import Address, Device

_BLOCK = 1024  # columns of a program


def swiglu(device: Device, partial: Address, x: Address, *, slices: int, rows: int, columns: int) -> None:
    """x float16 [rows, columns] = silu(gate) * up of float32 sums [slices, rows, gate and up]."""
    device.launch("swiglu", (rows, -(-columns // _BLOCK), 1), (partial, x, rows, columns, slices))
